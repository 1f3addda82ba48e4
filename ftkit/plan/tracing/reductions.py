"""What a sum, a mean, a maximum or a norm holds on CUDA while several blocks of threads share one result.

Rows are read by the block, and where few results are made of many values, several blocks work on each of them: each
writes what it found to a buffer in global memory, and the last to come adds it up. A bias gradient's buffer is larger
than the gradients of its layer: 64 MiB for 4096 tokens and 2048 columns on an H200. How many blocks there are follows
from the shape, from where the values lie, and from how many threads the card runs at once. All of it is done here as
torch does it (2.13, aten/src/ATen/native/cuda/Reduce.cuh: `setReduceConfig`, `gpu_reduce_kernel`, `ReduceConfig`;
aten/src/ATen/TensorIterator.cpp: the order of dimensions). Every sum that was measured on an H200 with torch 2.11 comes
out to the byte.

The buffer has a place for each result of a block once for each thread of the block, of which one writes: its size is
held, and not moved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ftkit.machine.hardware import Gpu
from ftkit.observe.tape import Untouched

MAX_THREADS = 512
"""Of a block."""
MOST_VALUES = 256
"""From how many values of a thread on several blocks share a result."""
VECTOR = 4
"""Values that a thread loads at once."""
VECTOR_FROM = 128
"""The shortest row that is loaded so."""
INDEXED = 2**31 - 1
"""The most values, and bytes between the first and the last, that one kernel reaches; more are done in pieces."""


@dataclass(frozen=True)
class _Dimension:
    """One dimension of a tensor that is reduced.

    Attributes:
        size: its elements.
        stride: elements between two of them.
        is_reduced: whether they become one.
    """

    size: int
    stride: int
    is_reduced: bool


def scratch(tensor: torch.Tensor, dims: Sequence[int], partial_bytes: int, gpu: Gpu) -> tuple[int, ...]:
    """Return the bytes of the buffer of partial results, and of the counters of blocks that are done.

    Args:
        tensor: what is reduced.
        dims: the dimensions that go; none: all.
        partial_bytes: of one partial result.
        gpu: the card.

    Returns:
        Sizes in bytes; nothing where a block makes a result alone.
    """
    if tensor.numel() == 0 or tensor.dim() == 0:
        return ()
    found = _dimensions(tensor, dims)
    held: tuple[int, ...] = ()
    if _is_far(found, tensor.element_size()):
        num_results = math.prod(one.size for one in found if not one.is_reduced)
        # A half cannot be added to between the pieces.
        held = (num_results * partial_bytes,) if tensor.element_size() < partial_bytes else ()
        while _is_far(found, tensor.element_size()):
            found = _first_half(found)
    return (*held, *_buffers(found, int(tensor.storage_offset()), partial_bytes, gpu))


def _dimensions(tensor: torch.Tensor, dims: Sequence[int]) -> list[_Dimension]:
    """Return the dimensions from the fastest on, those that are reduced first, and neighbours as one where they are."""
    gone = {dim % tensor.dim() for dim in dims} or set(range(tensor.dim()))
    each = [_Dimension(tensor.shape[at], tensor.stride(at), at in gone) for at in reversed(range(tensor.dim()))]
    reduced = sorted((one for one in each if one.is_reduced), key=lambda one: (one.stride, one.size))
    merged: list[_Dimension] = []
    for one in (*reduced, *(one for one in each if not one.is_reduced)):
        last = merged[-1] if merged else None
        if last is None or last.size == 1:
            merged[-1:] = [one]
        elif one.size == 1:
            continue
        elif last.is_reduced == one.is_reduced and last.size * last.stride == one.stride:
            merged[-1] = replace(last, size=last.size * one.size)
        else:
            merged.append(one)
    return merged


def _is_far(found: list[_Dimension], element: int) -> bool:
    """`TensorIterator::can_use_32bit_indexing`, turned round."""
    last = 1 + sum((one.size - 1) * one.stride * element for one in found)
    return math.prod(one.size for one in found) > INDEXED or last > INDEXED


def _first_half(found: list[_Dimension]) -> list[_Dimension]:
    """`TensorIterator::get_dim_to_split`: the longest way through memory is cut."""
    longest = max(found, key=lambda one: (one.size - 1) * one.stride)
    return [replace(one, size=(one.size + 1) // 2) if one is longest else one for one in found]


def _buffers(found: list[_Dimension], offset: int, partial_bytes: int, gpu: Gpu) -> tuple[int, ...]:
    """`setReduceConfig`, and the sizes that follow from it."""
    num_results = math.prod(one.size for one in found if not one.is_reduced)
    num_values = math.prod(one.size for one in found if one.is_reduced)
    num_reduced = sum(one.is_reduced for one in found)
    along = num_reduced == len(found) or (num_reduced > 0 and found[0].stride < found[num_reduced].stride)
    width, height, vector = (num_values, num_results, 1) if along else (num_results, num_values, 1)
    fastest = found[0].stride if along else found[num_reduced].stride
    if fastest == 1 and along and width >= VECTOR_FROM and num_reduced == 1:
        width //= VECTOR
    elif fastest == 1 and not along:
        vector = _vector(found, num_reduced, offset)
        width //= vector
    width, height = _block(width, height, MAX_THREADS // vector, gpu)
    values = -(-num_values // width) if along else num_values
    if values < min(height * 16, MOST_VALUES):
        return ()  # a warp makes a result alone
    values = -(-values // height)
    grid = -(-(num_results // vector) // (1 if along else width))
    at_once = gpu.multiprocessors * (gpu.threads // (width * height))
    if values < MOST_VALUES or grid > at_once:
        return ()
    blocks = max(min(-(-at_once // grid), -(-values // _fewest(gpu))), -(-values // MOST_VALUES))
    if blocks <= 1:
        return ()
    if gpu.vendor == "amd":
        blocks = max(blocks, 64)
    places = num_results * blocks * (1 if along else width * vector)
    return Untouched(partial_bytes * places), Untouched(4 * grid)


def _vector(found: list[_Dimension], first_kept: int, offset: int) -> int:
    """`get_output_vec_size`: how many neighbouring results a thread makes; the start of a storage is aligned."""
    steps = [one.stride for at, one in enumerate(found) if at != first_kept]
    return math.gcd(VECTOR, offset, found[first_kept].size, *steps)


def _block(width: int, height: int, most: int, gpu: Gpu) -> tuple[int, int]:
    """`ReduceConfig::set_block_dimension`: the threads of a block, in the direction of the memory and across it."""
    warp = 64 if gpu.vendor == "amd" else 32
    across, down = (min(most, 1 << (max(1, size).bit_length() - 1)) for size in (width, height))
    rows = min(down, most // min(across, warp))
    return min(across, most // rows), rows


def _fewest(gpu: Gpu) -> int:
    """Return the values of a thread below which no further block helps (`min_values_per_thread`)."""
    return 128 if gpu.vendor == "amd" else 16
