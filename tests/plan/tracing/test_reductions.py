"""What a sum over several blocks holds on CUDA: as an H200 with torch 2.11 (CUDA 13.0) asked its allocator for it."""

import pytest
import torch

from ftkit.machine.hardware import find_gpu
from ftkit.observe.tape import Untouched
from ftkit.plan.tracing import reductions
from ftkit.plan.tracing.cuda import scratch_size

H200 = find_gpu("h200")
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def empty(shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize(
    ("shape", "dims", "measured"),
    [
        ((4096, 512), [0], (16_777_216, 16)),
        ((4096, 768), [0], (25_165_824, 24)),
        ((4096, 2048), [0], (67_108_864, 64)),
        ((16384, 4096), [0], (138_412_032, 128)),
        ((65536, 384), [0], (138_412_032, 12)),
        ((4096, 8192), [0], (138_412_032, 256)),
        ((8, 512, 512), [0, 1], (16_777_216, 16)),
        ((512, 1024), [0], ()),
        ((4096, 512), [-1], ()),
    ],
)
def test_a_sum_over_rows_holds_partial_sums_in_fp32_for_each_thread_of_a_block(shape, dims, measured, dtype):
    assert scratch_size("sum.dim_IntList", (empty(shape, dtype), dims, True), H200) == measured


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((4096, 512), 256), ((4096, 768), 384), ((512, 1024), 64), ((16384, 4096), 528), ((65536, 384), 528)],
)
def test_one_result_of_everything_takes_a_value_of_each_block(shape, blocks):
    for op in ("sum", "mean", "linalg_vector_norm"):
        assert scratch_size(f"{op}.default", (empty(shape, BF16),), H200) == (4 * blocks, 4)
    assert scratch_size("amax.default", (empty(shape, BF16),), H200) == (2 * blocks, 4)  # needs no wider type


def test_fewer_threads_on_a_card_share_a_result_among_fewer_blocks():
    # 40 multiprocessors of 1024 threads have 320 blocks of 128 at once; 2048 sums are 16 of them.
    grad = empty((4096, 2048), FP16)
    assert scratch_size("sum.dim_IntList", (grad, [0], True), find_gpu("t4")) == (4 * 2048 * 20 * 128, 64)


def test_memory_decides_and_not_the_names_of_dimensions():
    turned = empty((512, 4096), BF16).t()  # its rows lie one value apart, so a block's threads share each sum
    assert reductions.scratch(turned, [0], 4, H200) == ()
    assert reductions.scratch(empty((1, 4096, 2048), BF16), [1], 4, H200) == (67_108_864, 64)
    assert reductions.scratch(empty((4096, 2048, 1), BF16), [0, 2], 4, H200) == (67_108_864, 64)
    odd = empty((4096, 2047), BF16)  # no two results lie in one load
    assert reductions.scratch(odd, [0], 4, H200) == (4 * 2047 * 9 * 32, 4 * 64)


def test_more_than_two_gigabytes_are_summed_in_pieces_which_a_half_type_adds_up_elsewhere():
    large = empty((2**21, 1024), BF16)
    held = reductions.scratch(large, [0], 4, H200)
    assert held[0] == 1024 * 4
    assert held[1:] == reductions.scratch(empty((2**20, 1024), BF16), [0], 4, H200)
    assert reductions.scratch(large.float(), [0], 4, H200)[0] != 1024 * 4


def test_nothing_is_held_of_nothing_and_what_is_held_is_not_moved():
    assert reductions.scratch(empty((), FP32), [], 4, H200) == ()
    assert reductions.scratch(empty((0, 4), FP32), [0], 4, H200) == ()
    assert all(isinstance(one, Untouched) for one in reductions.scratch(empty((4096, 512), FP32), [0], 4, H200))
