"""Which kernel torch takes for an attention, rule by rule (the rules' source is in attention_choice.py)."""

from dataclasses import replace

import pytest
import torch

from ftkit.machine.hardware import find_gpu
from ftkit.plan.tracing.attention import call_of
from ftkit.plan.tracing.attention_choice import AttentionCall, Kernel, choose, refusals

A100, T4, V100, GTX1060, RTX3060, H100 = map(find_gpu, ("a100-40gb", "t4", "v100-16gb", "gtx1060", "rtx3060", "h100"))
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


def call(dtype=FP16, heads=8, key_heads=8, width=64, **others):
    """A causal attention of 128 tokens."""
    heads, widths = (heads, key_heads, key_heads), (width, width, width)
    return replace(AttentionCall((dtype,) * 3, heads, widths, (128, 128), is_causal=True), **others)


def test_flash_comes_first_from_ampere_on_and_cudnn_before_it_on_hopper():
    assert choose(call(), A100) is Kernel.FLASH
    assert choose(call(), RTX3060) is Kernel.FLASH
    assert choose(call(), H100) is Kernel.CUDNN
    assert choose(call(), find_gpu("b200")) is Kernel.CUDNN
    assert choose(call(), find_gpu("rtx5090")) is Kernel.FLASH
    assert choose(call(), find_gpu("mi300x")) is Kernel.FLASH


@pytest.mark.parametrize("gpu", [T4, V100, GTX1060])
def test_cards_before_ampere_take_the_memory_efficient_kernel(gpu):
    assert choose(call(), gpu) is Kernel.EFFICIENT
    assert refusals(Kernel.FLASH, call(), gpu) == ["the card is older than Ampere"]


@pytest.mark.parametrize("gpu", [T4, V100, GTX1060, A100])
def test_fp32_takes_the_memory_efficient_kernel(gpu):
    assert choose(call(FP32), gpu) is Kernel.EFFICIENT


def test_bf16_before_ampere_is_left_to_math():
    assert choose(call(BF16), A100) is Kernel.FLASH
    assert choose(call(BF16), T4) is Kernel.MATH


def test_a_mask_rules_flash_out():
    assert choose(call(has_mask=True, is_causal=False), A100) is Kernel.EFFICIENT
    assert choose(call(has_mask=True, is_causal=False), H100) is Kernel.CUDNN
    assert choose(call(has_mask=True, mask_needs_grad=True, is_causal=False), H100) is Kernel.EFFICIENT


def test_grouped_heads_go_to_flash_if_it_was_told_and_to_math_where_there_is_no_flash():
    grouped = call(key_heads=2, takes_groups=True)
    assert choose(grouped, A100) is Kernel.FLASH
    assert choose(grouped, H100) is Kernel.CUDNN
    assert [choose(grouped, gpu) for gpu in (T4, V100, GTX1060)] == 3 * [Kernel.MATH]
    assert choose(replace(grouped, dtypes=(FP32,) * 3), A100) is Kernel.MATH
    assert choose(replace(grouped, takes_groups=False), A100) is Kernel.MATH
    assert choose(call(key_heads=3, takes_groups=True), A100) is Kernel.MATH  # 8 heads are not 3 groups


def test_groups_that_are_no_groups_change_nothing():
    assert choose(call(takes_groups=True), T4) is Kernel.EFFICIENT


@pytest.mark.parametrize(
    ("gpu", "width", "dropout", "kernel"),
    [
        (A100, 256, 0.1, Kernel.FLASH),
        (A100, 264, 0.0, Kernel.EFFICIENT),
        (RTX3060, 192, 0.1, Kernel.FLASH),
        (RTX3060, 200, 0.0, Kernel.EFFICIENT),
        (RTX3060, 256, 0.0, Kernel.FLASH),
        (RTX3060, 256, 0.1, Kernel.EFFICIENT),
    ],
)
def test_flash_takes_heads_of_256_but_for_some_backwards_of_small_cards(gpu, width, dropout, kernel):
    assert choose(call(width=width, dropout=dropout), gpu) is kernel
    assert choose(call(width=min(width, 256), dropout=dropout, needs_grad=False), gpu) is Kernel.FLASH


def test_flash_wants_heads_equally_wide_and_the_efficient_kernel_only_query_and_key():
    latent = call(widths=(192, 192, 128))
    assert choose(latent, A100) is Kernel.EFFICIENT
    assert choose(latent, H100) is Kernel.CUDNN
    assert choose(replace(latent, widths=(192, 128, 128)), A100) is Kernel.MATH


@pytest.mark.parametrize(
    ("gpu", "dtype", "multiple"),
    [(T4, FP16, 8), (T4, FP32, 1), (GTX1060, FP16, 1), (A100, FP32, 4), (find_gpu("mi210"), FP32, 4)],
)
def test_the_efficient_kernel_wants_widths_that_its_loads_are_aligned_to(gpu, dtype, multiple):
    assert choose(call(dtype, width=9 * multiple), gpu) is Kernel.EFFICIENT
    if multiple > 1:
        assert choose(call(dtype, width=9 * multiple + 1), gpu) is Kernel.MATH


def test_causal_flash_wants_as_many_keys_as_queries():
    assert choose(call(lengths=(64, 128)), A100) is Kernel.EFFICIENT
    assert choose(call(lengths=(64, 128), is_causal=False), A100) is Kernel.FLASH


def test_no_kernel_takes_an_empty_sequence():
    assert choose(call(lengths=(0, 0)), A100) is Kernel.MATH


def test_cudnn_lets_key_and_value_differ_in_heads_where_each_divides_the_querys():
    """As an H200 with torch 2.11 chose."""
    several = call(heads=8, takes_groups=True)
    for heads, kernel in (((8, 8, 2), Kernel.CUDNN), ((8, 4, 2), Kernel.CUDNN), ((8, 3, 1), Kernel.MATH)):
        assert choose(replace(several, heads=heads), H100) is kernel
    assert choose(replace(several, heads=(8, 4, 2)), A100) is Kernel.MATH
    assert choose(replace(several, heads=(8, 4, 2), takes_groups=False), H100) is Kernel.MATH


def test_cudnn_takes_neither_a_single_key_nor_a_single_query_with_dropout():
    """As an H200 with torch 2.11 chose."""
    one = call(lengths=(1, 128), is_causal=False)
    assert choose(one, H100) is Kernel.CUDNN
    assert choose(replace(one, dropout=0.125), H100) is Kernel.FLASH
    assert choose(replace(one, lengths=(128, 1)), H100) is Kernel.FLASH


@pytest.mark.parametrize(
    ("mask", "kernel"),
    [
        ((128, 128), Kernel.CUDNN),
        ((1, 128), Kernel.CUDNN),
        ((2, 1, 128, 128), Kernel.CUDNN),
        ((2, 1, 1, 128), Kernel.CUDNN),
        ((2, 128, 128), Kernel.EFFICIENT),
        ((128,), Kernel.EFFICIENT),
    ],
)
def test_cudnn_takes_masks_of_two_and_of_four_dimensions(mask, kernel):
    """As an H200 with torch 2.11 chose."""
    heads = torch.empty(2, 8, 128, 64, dtype=BF16, device="meta", requires_grad=True)
    given = torch.empty(mask, dtype=torch.bool, device="meta")
    assert choose(call_of(heads, heads, heads, given), H100) is kernel


def test_cudnn_wants_dropout_in_sixteenths_and_heads_of_at_most_128():
    # Torch 2.11 took any dropout, and on Hopper heads of up to 256.
    assert choose(call(dropout=0.125), H100) is Kernel.CUDNN
    assert choose(call(dropout=0.1), H100) is Kernel.FLASH
    assert choose(call(width=136), H100) is Kernel.FLASH
    assert choose(call(width=100), H100) is Kernel.FLASH
    assert choose(call(FP32), H100) is Kernel.EFFICIENT


def test_tensors_of_several_dtypes_are_left_to_math():
    assert choose(call(dtypes=(FP16, FP16, FP32)), A100) is Kernel.MATH
