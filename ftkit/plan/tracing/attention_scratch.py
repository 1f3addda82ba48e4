"""What the attention kernels hold on CUDA beside their results until their end, in bytes of each tensor.

Each function takes the arguments of its operator, and the card. Measured on an H200 with torch 2.11 (CUDA 13.0,
cuDNN 9.19), for the widths and lengths of tests/plan/tracing/test_attention_scratch.py: to the byte.
"""

from typing import Any, NamedTuple

import torch

from ftkit.machine.hardware import Gpu

TILE = 64
"""Rows and columns of the memory-efficient kernel's smaller tile."""
WIDE_TILE = 128
"""Of its larger one; heads that are wider than this are never kept in registers."""
HALF_BYTES = 2
"""Of an element in half precision."""
SPLITS = 200
"""Into how many parts of the keys, over all heads, the memory-efficient kernel's backward is split at most."""
LOCK = 4
"""fp32 values that a lock and a counter take before each tile of a sum."""
SPARE = 256
"""Bytes that cuDNN asks for beyond the tensors below."""
FULL_ENOUGH = 0.8
"""The share of the multiprocessors that flash attention leaves as it is."""
GOOD_ENOUGH = 0.85
"""The share of the best split's use of the multiprocessors that a smaller split may have."""


def flash_forward(args: tuple[Any, ...], gpu: Gpu) -> tuple[int, ...]:
    """Return the parts of a result whose keys are split: too few heads and rows to fill a card, and no dropout.

    torch 2.13, aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, set_params_splitkv,
    num_splits_heuristic; the width is rounded as in mha_fwd. AMD's kernels do not split.
    """
    query, key = args[:2]
    batch, heads, length, width = query.shape
    dropout = args[3] if len(args) > 3 else 0.0
    columns = 256 if width <= 64 else 128 if width <= 128 else 64
    blocks = batch * heads * -(-length // 64)
    splits = _splits(blocks, 2 * gpu.multiprocessors, -(-key.shape[2] // columns))
    if dropout or splits == 1 or gpu.vendor == "amd":
        return ()
    rows = 4 * splits * batch * heads * length
    return rows, rows * _round_up(width, 32 if width <= WIDE_TILE else 64)


def _splits(blocks: int, at_once: int, columns: int) -> int:
    """Return the fewest parts of the keys, in blocks of columns, that use a card nearly as well as the best."""
    if blocks >= FULL_ENOUGH * at_once:
        return 1
    uses = {}
    for splits in range(1, min(128, at_once, columns) + 1):
        if splits == 1 or -(-columns // splits) != -(-columns // (splits - 1)):
            waves = blocks * splits / at_once
            uses[splits] = waves / -(-waves // 1)
    return next(splits for splits, use in uses.items() if use >= GOOD_ENOUGH * max(uses.values()))


def flash_backward(args: tuple[Any, ...], _: Gpu) -> tuple[int, ...]:
    """Return what flash attention's backward holds.

    Sums over the rows and the gradient of the query in fp32; gradients of key and value for each head of the query
    where heads are grouped; the result and its gradient in one piece.
    https://github.com/pytorch/pytorch/blob/v2.9.0/aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp,
    mha_bwd; cuda/attention_backward.cu, _flash_attention_backward
    """
    grad, query, key, _value, out = args[:5]
    batch, heads, length, width = query.shape
    rows = 4 * batch * heads * _round_up(length, 128)
    sums = rows, rows * _round_up(width, 32 if width <= WIDE_TILE else 64)
    return (*sums, *_repeated(query, key), *_one_piece(grad), *_one_piece(out))


def efficient_forward(args: tuple[Any, ...], _: Gpu) -> tuple[int, ...]:
    """Return the result in fp32, which heads in half precision have that are too wide for registers.

    torch 2.13, mem_eff_attention/kernel_forward.h, kNeedsOutputAccumulatorBuffer
    """
    query, value = args[0], args[2]
    if query.element_size() != HALF_BYTES or value.shape[-1] <= WIDE_TILE:
        return ()
    return (4 * query.shape[0] * query.shape[1] * query.shape[2] * value.shape[-1],)


def cudnn_backward(args: tuple[Any, ...], _: Gpu) -> tuple[int, ...]:
    """Return the workspace of cuDNN's backward: one tensor, of what flash attention holds, and nothing rounded up.

    cuDNN does not publish it; this is what was measured.
    """
    grad, query, key = args[:3]
    batch, heads, length, width = query.shape
    rows = 4 * batch * heads * length
    return (rows + rows * width + sum(_repeated(query, key)) + SPARE, *_one_piece(grad))


def efficient_backward(args: tuple[Any, ...], gpu: Gpu) -> tuple[int, ...]:
    """Return what memory-efficient attention's backward holds.

    Sums over the rows in fp32, of a product in fp32 where the kernel does not make them; the gradient of the query in
    fp32, in whole tiles; those of key and value where heads are too wide for registers; the gradient of the result in
    one piece.
    https://github.com/pytorch/pytorch/blob/v2.9.0/aten/src/ATen/native/transformers/cuda/attention_backward.cu, and of
    2.13 mem_eff_attention/kernel_backward.h, workspace_size
    """
    grad, query, key = args[:3]
    batch, heads, length, width = query.shape
    tile = _tile(query.dtype, max(width, args[3].shape[-1]), gpu)
    blocks = -(-length // tile.rows) * -(-width // tile.columns)
    per_head = blocks * (LOCK + tile.rows * tile.columns)
    is_half = query.element_size() == HALF_BYTES
    if is_half and not tile.in_registers:
        splits = max(1, min(-(-key.shape[2] // tile.columns), SPLITS // (batch * heads)))
        wide = _round_up(width, tile.rows) + _round_up(args[3].shape[-1], tile.rows)
        per_head += splits * tile.columns * wide
    sums, workspace = 4 * batch * heads * length, 4 * batch * heads * per_head
    if is_half:
        return (sums, workspace, *_one_piece(grad))
    # The product, and its sums as they are made, are gone before the workspace is there.
    return (sums, max(workspace, sums * args[3].shape[-1] + sums), *_one_piece(grad))


class _Tile(NamedTuple):
    """What a block of the memory-efficient kernel's backward works on; `in_registers`: gradients of key and value."""

    rows: int
    columns: int
    in_registers: bool


def _tile(dtype: torch.dtype, width: int, gpu: Gpu) -> _Tile:
    """Return the tile of the first kernel for a width that fits into a card's shared memory.

    torch 2.13, mem_eff_attention/kernels/cutlassB.h, which lists them; gradients stay in registers up to heads as wide
    as a tile has rows (kernel_backward.h, kOutputInRF). Which tiles fit was measured on the H200 alone: cards with less
    shared memory than V100 and A100 are taken to have the smaller one (generate_kernels.py says so).
    """
    is_half = dtype.itemsize == HALF_BYTES
    if width <= TILE:
        return _Tile(TILE, TILE, is_half)
    if gpu.capability in ((8, 0), (9, 0), (10, 0)):
        fits = is_half and width <= WIDE_TILE
        return _Tile(WIDE_TILE, WIDE_TILE if fits else TILE, fits)
    if is_half and (
        (gpu.capability == (7, 0) and width <= WIDE_TILE) or (gpu.capability in ((8, 6), (8, 9)) and width <= 96)
    ):
        return _Tile(WIDE_TILE, TILE, True)
    return _Tile(TILE, TILE, False)


def _repeated(query: torch.Tensor, key: torch.Tensor) -> tuple[int, ...]:
    """Return the gradients of key and value for each head of the query, where several heads share a key."""
    if key.shape[1] == query.shape[1]:
        return ()
    return 2 * (key.shape[0] * key.shape[2] * query.shape[1] * query.shape[3] * key.element_size(),)


def _one_piece(grad: torch.Tensor) -> tuple[int, ...]:
    """Return the copy of a gradient whose heads of one token are not beside each other."""
    return () if grad.transpose(1, 2).is_contiguous() else (grad.numel() * grad.element_size(),)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
