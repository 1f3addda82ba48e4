"""Memory of a host: which ranks share it, and what refuses it; that two share theirs is seen in tests/distributed."""

import mmap
import os

import pytest

from ftkit.errors import DeviceError
from ftkit.machine import host_memory, ranks
from ftkit.machine.process import ProcessContext

MACHINE, OTHER = ("boot-1", "pid:[1]", "a"), ("boot-2", "pid:[1]", "b")


@pytest.fixture
def first_of_two(monkeypatch):
    """Return a function that gives the first rank of two; the other says what a function makes of its words."""

    def beside(say):
        for module in (ranks, host_memory):
            monkeypatch.setattr(module, "of_all_ranks", lambda _, value: [value, say(value)])
        return ProcessContext(rank=0, world_size=2, local_world_size=2)

    return beside


def test_a_process_alone_has_memory_of_its_own():
    made = host_memory.host_memory(100, ProcessContext())
    assert (made.bytes.numel(), made.number, made.num_sharers) == (100, 0, 1)


@pytest.mark.parametrize(
    ("systems", "sharers"),
    [
        ([MACHINE, MACHINE], [[0, 1], [0, 1]]),
        ([MACHINE, OTHER], [[0], [1]]),
        ([MACHINE, OTHER, MACHINE, OTHER], [[0, 2], [1, 3], [0, 2], [1, 3]]),  # as mpirun --map-by node counts
        ([MACHINE, (MACHINE[0], "pid:[2]", "c")], [[0], [1]]),  # two containers
        ([None, None, MACHINE], [[0], [1], [2]]),
    ],
)
def test_ranks_share_memory_where_they_see_one_another_whatever_a_launcher_says(systems, sharers):
    assert [host_memory.sharers_of(systems, rank) for rank in range(len(systems))] == sharers


def test_a_rank_whose_launcher_does_not_tell_of_another_machine_fills_all_of_its_memory(first_of_two):
    process = first_of_two(lambda value: OTHER if isinstance(value, tuple) else value)
    made = host_memory.host_memory(100, process)
    assert (made.number, made.num_sharers) == (0, 1)


def test_ranks_of_a_python_without_such_memory_have_their_own(first_of_two, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    made = host_memory.host_memory(100, first_of_two(lambda value: value))
    assert (made.bytes.numel(), made.number, made.num_sharers) == (100, 0, 1)


@pytest.mark.parametrize(("module", "name"), [(os, "memfd_create"), (os, "ftruncate"), (os, "open"), (mmap, "mmap")])
def test_memory_that_the_system_refuses_to_a_rank_is_one_sentence_on_all(module, name, first_of_two, monkeypatch):
    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    process = first_of_two(lambda value: value)
    monkeypatch.setattr(module, name, refuse)
    with pytest.raises(
        DeviceError, match=r"cannot share memory .*Cannot allocate.* give --set engine\.stream_layers=disk"
    ):
        host_memory.host_memory(100, process)
