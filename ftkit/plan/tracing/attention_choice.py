"""Choose the kernel of an attention as torch does on a card, and say why the quicker ones were passed over.

`scaled_dot_product_attention` asks its kernels in an order, and takes the first that none of its rules refuses; plain
math, which makes the whole matrix of scores, is never refused. The rules are those of torch 2.13,
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (`select_sdp_backend` and what it calls) and sdp_utils_cpp.h;
each function below names the one that it repeats. Nested tensors, which ftkit does not use, are left out.

torch 2.14 lets the memory-efficient kernel take grouped heads (pull request 191085): then `_efficient_heads` changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch

from ftkit.machine.hardware import Gpu

HALVES = (torch.float16, torch.bfloat16)


class Kernel(StrEnum):
    """A way of computing attention; the value is what torch calls it."""

    CUDNN = "cudnn"
    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"


@dataclass(frozen=True)
class AttentionCall:
    """The facts of a call that decide its kernel.

    Attributes:
        dtypes: of query, key and value.
        heads: of the same three.
        widths: of one head of each.
        lengths: tokens of query and key.
        has_mask: whether a mask is given.
        is_causal: whether the kernel itself masks later tokens.
        dropout: the share of weights that is dropped.
        needs_grad: whether a gradient of query, key or value is asked for.
        takes_groups: `enable_gqa`: whether keys may have fewer heads.
        mask_needs_grad: whether a gradient of the mask is asked for.
        mask_fits: whether the mask has two dimensions, or four, and each is 1 or what it is of the scores.
    """

    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]
    heads: tuple[int, int, int]
    widths: tuple[int, int, int]
    lengths: tuple[int, int]
    has_mask: bool = False
    is_causal: bool = False
    dropout: float = 0.0
    needs_grad: bool = True
    takes_groups: bool = False
    mask_needs_grad: bool = False
    mask_fits: bool = True


Rule = Callable[[AttentionCall, Gpu], str | None]
"""Why a kernel cannot take a call on a card, or None."""


def choose(call: AttentionCall, gpu: Gpu) -> Kernel:
    """Return the kernel that torch takes.

    Args:
        call: the attention.
        gpu: the card.
    """
    return next((kernel for kernel in order(gpu) if not refusals(kernel, call, gpu)), Kernel.MATH)


def order(gpu: Gpu) -> list[Kernel]:
    """Return the kernels in the order in which torch asks them (`check_prefer_cudnn_attention`, `priority_order`).

    cuDNN comes first on Hopper and on Blackwell's servers, and last anywhere else, where it is never reached: what it
    takes, another takes before. It needs cuDNN 9.15.1, which torch's wheels for CUDA 13 have.

    Args:
        gpu: the card.
    """
    first = [Kernel.CUDNN] if gpu.vendor == "nvidia" and gpu.capability[0] in (9, 10) else []
    return [*first, Kernel.FLASH, Kernel.EFFICIENT]


def refusals(kernel: Kernel, call: AttentionCall, gpu: Gpu) -> list[str]:
    """Return why a kernel cannot take a call; nothing where it can.

    Args:
        kernel: one of them.
        call: the attention.
        gpu: the card.
    """
    return [reason for rule in _RULES[kernel] if (reason := rule(call, gpu)) is not None]


def _lengths(call: AttentionCall, _: Gpu) -> str | None:
    """`check_nonzero_sequence_lengths_dense`."""
    return None if all(call.lengths) else "a sequence is empty"


def _half(call: AttentionCall, gpu: Gpu) -> str | None:
    """`check_dtypes_low_precision`: fp16, and bf16 from Ampere on; all three alike."""
    allowed = HALVES if gpu.has_bf16 else (torch.float16,)
    return None if call.dtypes[0] in allowed and len(set(call.dtypes)) == 1 else "it takes half precision alone"


def _groups(call: AttentionCall, _: Gpu) -> str | None:
    """`check_batch_size_and_num_heads_dense` with groups, `check_grouped_query_attention`."""
    query, key, value = call.heads
    if query == key == value or (call.takes_groups and key == value and query % key == 0):
        return None
    return "key and value have other heads than the query"


def _cudnn_groups(call: AttentionCall, _: Gpu) -> str | None:
    """The same two, which let key and value differ from each other here: each divides the heads of the query."""
    query, key, value = call.heads
    if query == key == value or (call.takes_groups and query % key == query % value == 0):
        return None
    return "the heads of key or value do not divide those of the query, or they were not said to be groups"


def _flash_card(_: AttentionCall, gpu: Gpu) -> str | None:
    """`check_flash_attention_hardware_support`: compute capability 8.0 to 12.1; AMD's CDNA2 and later."""
    return None if gpu.vendor == "amd" or (8, 0) <= gpu.capability <= (12, 1) else "the card is older than Ampere"


def _flash_mask(call: AttentionCall, _: Gpu) -> str | None:
    """`check_for_attn_mask`."""
    return "there is a mask" if call.has_mask else None


def _flash_widths(call: AttentionCall, _: Gpu) -> str | None:
    """`check_head_dim_size_flash`: all heads equally wide, at most 256."""
    widest = 256
    is_taken = len(set(call.widths)) == 1 and call.widths[0] <= widest
    return None if is_taken else f"heads are wider than {widest}, or not equally wide"


def _flash_backward(call: AttentionCall, gpu: Gpu) -> str | None:
    """`check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120`: shared memory is short there."""
    is_small = (8, 6) <= gpu.capability <= (8, 9) or (12, 0) <= gpu.capability <= (12, 1)
    width = call.widths[0]
    if gpu.vendor == "amd" or not (call.needs_grad and is_small) or width <= 192 or (not call.dropout and width > 224):
        return None
    return "its backward does not take heads this wide on this card"


def _flash_square(call: AttentionCall, _: Gpu) -> str | None:
    """`check_flash_causal_non_square_seqlens`."""
    return "causal, and key and query differ in length" if call.is_causal and len(set(call.lengths)) > 1 else None


def _efficient_dtype(call: AttentionCall, gpu: Gpu) -> str | None:
    """`can_use_mem_efficient_attention`, its last lines: fp32 and fp16, and bf16 from Ampere on."""
    allowed = (torch.float32, *HALVES) if gpu.has_bf16 else (torch.float32, torch.float16)
    return None if call.dtypes[0] in allowed and len(set(call.dtypes)) == 1 else "it does not take the dtype here"


def _efficient_heads(call: AttentionCall, _: Gpu) -> str | None:
    """`check_batch_size_and_num_heads_dense` without groups: it never takes fewer heads of the key."""
    return None if len(set(call.heads)) == 1 else "it does not take grouped heads"


def _efficient_widths(call: AttentionCall, gpu: Gpu) -> str | None:
    """`check_head_dim_size_mem_efficient`, `minimum_gemm_alignment`: rows that its loads are aligned to."""
    query, key, value = call.widths
    multiple = _alignment(call, gpu)
    is_taken = query == key and query % multiple == value % multiple == 0
    return None if is_taken else f"the width of a head is not a multiple of {multiple}, or query's is not key's"


def _alignment(call: AttentionCall, gpu: Gpu) -> int:
    is_half = call.dtypes[0] in HALVES
    if gpu.vendor == "amd":
        return 8 if is_half else 4
    if gpu.capability >= (8, 0):
        return 8 if is_half else 4
    return 8 if gpu.capability >= (7, 0) and is_half else 1


def _cudnn_widths(call: AttentionCall, _: Gpu) -> str | None:
    """`check_cudnn_tensor_shapes`: multiples of 8, at most 128, or 192 against 128.

    Up to cuDNN 9.22, that is; torch 2.13 comes with 9.20. Torch 2.11 took heads of up to 256 on Hopper, and newer
    cuDNN takes them again, of 256 alone in training (pull request 185553).
    """
    query, _key, value = call.widths
    fits = max(query, value) <= 128 or (query, value) == (192, 128)
    return None if fits and query % 8 == value % 8 == 0 else "it does not take heads this wide"


def _cudnn_lengths(call: AttentionCall, _: Gpu) -> str | None:
    """`check_cudnn_tensor_shapes`, its last lines: not a single key, and not a single query with dropout."""
    queries, keys = call.lengths
    return (
        "there is a single key, or a single query with dropout"
        if keys == 1 or (call.dropout and queries == 1)
        else None
    )


def _cudnn_dropout(call: AttentionCall, _: Gpu) -> str | None:
    """`check_cudnn_dropout`: the rate in sixteenths; torch 2.11 did not ask (pull request 174245)."""
    return None if (call.dropout * 16).is_integer() else "the rate of dropout is not a multiple of 1/16"


def _cudnn_mask(call: AttentionCall, _: Gpu) -> str | None:
    """`check_attn_mask_shape`."""
    if call.has_mask and not call.mask_fits:
        return "the mask has neither two dimensions nor four, or others than the scores"
    return "the mask needs a gradient" if call.mask_needs_grad else None


_RULES: dict[Kernel, tuple[Rule, ...]] = {
    Kernel.CUDNN: (_half, _cudnn_mask, _cudnn_dropout, _lengths, _cudnn_groups, _cudnn_widths, _cudnn_lengths),
    Kernel.FLASH: (_flash_card, _half, _flash_mask, _flash_widths, _flash_backward, _flash_square, _groups, _lengths),
    Kernel.EFFICIENT: (_efficient_dtype, _efficient_widths, _efficient_heads, _lengths),
    Kernel.MATH: (),
}
