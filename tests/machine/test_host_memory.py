"""Memory of a host: a process alone has its own; that two ranks share theirs is seen in tests/distributed."""

import pytest

from ftkit.errors import DeviceError
from ftkit.machine import host_memory
from ftkit.machine.process import ProcessContext


def test_a_process_alone_on_its_machine_has_memory_of_its_own():
    made = host_memory.host_memory(100, ProcessContext(rank=1, world_size=2))
    assert (made.bytes.numel(), made.number, made.num_sharers) == (100, 0, 1)


def test_memory_of_another_rank_that_cannot_be_opened_is_one_sentence(tmp_path):
    with pytest.raises(DeviceError, match=r"cannot share memory .* choose engine\.stream_layers=disk"):
        host_memory._mapped(str(tmp_path / "missing"), 100)
