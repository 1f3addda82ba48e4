"""What attention holds on CUDA beside its results: as an H200 with torch 2.11 (CUDA 13.0, cuDNN 9.19) asked for it."""

import pytest
import torch

from ftkit.machine.hardware import find_gpu
from ftkit.plan.tracing.cuda import scratch_size

H200, A100, T4, RTX3060 = map(find_gpu, ("h200", "a100-40gb", "t4", "rtx3060"))
FP32, BF16 = torch.float32, torch.bfloat16


def heads(number, length, width, dtype=BF16, *, batch=2, together=True):
    """Return (batch, heads, length, width), with the heads of one token beside each other or not."""
    shape = (batch, length, number, width) if together else (batch, number, length, width)
    made = torch.empty(shape, dtype=dtype, device="meta")
    return made.transpose(1, 2) if together else made


def held(kernel, direction, query, key=None, *more, gpu=H200):
    key = query if key is None else key
    tensors = (query, key, key) if direction == "" else (query, query, key, key)
    return scratch_size(f"_scaled_dot_product_{kernel}_attention{direction}.default", (*tensors, *more), gpu)


@pytest.mark.parametrize(
    ("number", "length", "width", "measured"),
    [
        (8, 520, 32, (99_840, 3_194_880)),
        (8, 520, 64, (99_840, 6_389_760)),
        (8, 520, 80, (99_840, 9_584_640)),
        (32, 1024, 64, ()),
    ],
)
def test_flash_splits_the_keys_of_few_heads_and_rows(number, length, width, measured):
    query = heads(number, length, width)
    assert held("flash", "", query, None, 0.0, True) == measured
    assert held("flash", "", query, None, 0.1, True) == (), "not with dropout"
    assert held("flash", "", query, None, 0.0, True, gpu=find_gpu("mi300x")) == ()


@pytest.mark.parametrize(
    ("width", "measured"),
    [(32, (40_960, 1_310_720)), (80, (40_960, 3_932_160)), (128, (40_960, 5_242_880)), (160, (40_960, 7_864_320))],
)
def test_flash_sums_the_gradient_of_the_query_in_fp32_in_whole_tiles(width, measured):
    query = heads(8, 520, width)
    assert held("flash", "_backward", query, None, query) == measured


def test_flash_copies_a_result_and_a_gradient_whose_heads_are_scattered_and_repeats_grouped_keys():
    query, scattered = heads(8, 520, 64), heads(8, 520, 64, together=False)
    sums, copy = (40_960, 2_621_440), 1_064_960
    assert held("flash", "_backward", query, heads(2, 520, 64), query) == (*sums, copy, copy)
    assert held("flash", "_backward", query, None, scattered) == (*sums, copy)
    assert held("flash", "_backward", scattered, None, scattered) == (*sums, copy, copy)


@pytest.mark.parametrize(
    ("number", "keys", "length", "width", "measured"),
    [
        (8, 8, 512, 64, 2_130_176),
        (8, 2, 512, 64, 4_227_328),
        (32, 8, 1024, 128, 67_371_264),
        (12, 12, 512, 80, 3_981_568),
        (8, 8, 200, 64, 832_256),
        (16, 4, 384, 96, 9_486_592),
        (8, 8, 128, 64, 532_736),
    ],
)
def test_cudnn_asks_for_one_workspace_of_sums_and_gradients_as_they_are(number, keys, length, width, measured):
    assert held("cudnn", "_backward", heads(number, length, width), heads(keys, length, width)) == (measured,)


@pytest.mark.parametrize(
    ("dtype", "number", "length", "width", "measured"),
    [
        (BF16, 8, 520, 32, (33_280, 2_361_600)),
        (BF16, 8, 520, 64, (33_280, 2_361_600)),
        (BF16, 8, 520, 80, (33_280, 5_244_160)),
        (BF16, 8, 520, 128, (33_280, 5_244_160)),
        (BF16, 8, 520, 160, (33_280, 26_742_528)),
        (BF16, 8, 520, 256, (33_280, 29_365_248)),
        (BF16, 2, 4096, 160, (65_536, 38_803_456)),
        (BF16, 32, 1024, 64, (262_144, 16_793_600)),
        (FP32, 8, 520, 64, (33_280, 2_361_600)),
        (FP32, 8, 520, 80, (33_280, 5_245_440)),
        (FP32, 8, 520, 160, (33_280, 7_868_160)),
        (FP32, 8, 520, 256, (33_280, 10_490_880)),
        (FP32, 2, 4096, 160, (65_536, 12_589_056)),
        (FP32, 32, 1024, 64, (262_144, 16_777_216 + 262_144)),  # the product and its sums, which are more
    ],
)
def test_the_memory_efficient_kernel_sums_in_whole_tiles_behind_their_locks(dtype, number, length, width, measured):
    assert held("efficient", "_backward", heads(number, length, width, dtype)) == measured


def test_cards_with_less_shared_memory_take_smaller_tiles_and_keep_fewer_gradients_in_registers():
    query = heads(8, 520, 80)
    assert held("efficient", "_backward", query, gpu=A100) == held("efficient", "_backward", query)
    tiles = 4 * 16 * 5 * 2 * (4 + 128 * 64)
    assert held("efficient", "_backward", query, gpu=RTX3060) == (33_280, tiles)
    splits = 4 * 16 * 9 * 64 * 2 * 128  # of the keys: in nine parts, each with its gradients of key and value
    assert held("efficient", "_backward", query, gpu=T4) == (33_280, 4 * 16 * 9 * 2 * (4 + 64 * 64) + splits)


@pytest.mark.parametrize(
    ("dtype", "width", "measured"),
    [(BF16, 160, (5_324_800,)), (BF16, 256, (8_519_680,)), (BF16, 128, ()), (FP32, 160, ())],
)
def test_heads_too_wide_for_registers_have_their_result_in_fp32_first(dtype, width, measured):
    assert held("efficient", "", heads(8, 520, width, dtype)) == measured
