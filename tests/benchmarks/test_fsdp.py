import json
import subprocess
import sys

import pytest
import torch

from benchmarks.stacks import autocast, fsdp, traced
from ftkit.observe.allocator import replay
from ftkit.observe.tape import Birth, Tape
from ftkit.step.observer import Phase
from tests.benchmarks.fsdp_worker import live_bytes


def _run(*arguments):
    command = [sys.executable, "-m", "tests.benchmarks.fsdp_worker", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.distributed
@pytest.mark.parametrize("version", [1, 2])
def test_a_rank_without_the_others_holds_what_a_real_one_holds_to_the_byte(version, tmp_path):
    ranks = [_run(version, "real", rank, 2, tmp_path / "store") for rank in (0, 1)]
    alone = _run(version, "fake", 2)
    said, _, found = [process.communicate()[0] for process in (*ranks, alone)]
    assert [process.returncode for process in (*ranks, alone)] == [0, 0, 0]
    assert json.loads(found) == json.loads(said)


@pytest.mark.parametrize("version", [1, 2])
def test_a_rank_of_four_holds_a_quarter_of_the_weights(version):
    # 2 x 48 x 32 of embedding and head, 3 x 2 x 32 x 64 of the blocks, in fp32.
    whole = 4 * (2 * 48 * 32 + 3 * 2 * 32 * 64)
    name, held = live_bytes(4, is_fake=True, version=version)["marks"][0]
    assert (name, held) == ("load", whole // 4)


def _tape(*events, streams):
    births = [Birth(2**20 * 20, Phase.FORWARD, 1, 0, "", None, stream=stream) for stream in streams]
    return Tape(births, [(event, None) for event in events], [])


def test_memory_that_another_stream_used_is_free_again_when_the_host_has_waited():
    # A gathered weight of stream 1 dies and the next one is born: reused only where the host waited in between.
    tape = _tape(0, ~0, 1, ~1, streams=[1, 1])
    device = fsdp.Device()
    device.used_elsewhere = {0, 1}
    assert replay(device.allocator_events(tape)).peak_reserved_bytes == 2 * 20 * 2**20
    device.waited = [(2, 2)]
    assert replay(device.allocator_events(tape)).peak_reserved_bytes == 20 * 2**20


def test_a_wait_for_an_earlier_place_frees_nothing_that_died_later():
    device = fsdp.Device()
    device.used_elsewhere = {0, 1}
    device.waited = [(2, 1)]
    tape = _tape(0, ~0, 1, ~1, streams=[1, 1])
    assert replay(device.allocator_events(tape)).peak_reserved_bytes == 2 * 20 * 2**20


def test_autocast_on_fake_tensors_casts_by_the_lists_of_cuda():
    with traced.computing(), autocast.cuda_lists(), torch.autocast("cpu", torch.float16):
        weight = torch.nn.Parameter(torch.empty(8, 8))
        half = torch.nn.functional.linear(torch.empty(4, 8), weight)
        found = {
            "linear": half,
            "softmax": torch.softmax(half, -1),
            "layer_norm": torch.nn.functional.layer_norm(half, (8,)),
            "power": half**2,
            "gelu": torch.nn.functional.gelu(half),
        }
        assert torch.is_autocast_enabled()
    kinds = {name: tensor.dtype for name, tensor in found.items()}
    expected = dict.fromkeys(found, torch.float32) | {"linear": torch.float16, "gelu": torch.float16}
    assert kinds == expected
    # Outside, the CPU's own lists are back: they leave softmax in half precision.
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.softmax(torch.zeros(2, 2, dtype=torch.bfloat16), -1).dtype == torch.bfloat16
