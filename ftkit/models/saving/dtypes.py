"""The types that a model's weights are stored in: found, kept when they are written again, and checked afterwards."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.models.sources.source import Source, own_config

if TYPE_CHECKING:
    import torch

Named = Iterator[tuple[str, "torch.Tensor"]]
"""Tensors with their names, one after another."""
_BLOCK = 2**20
"""Numbers of a tensor that are rounded together."""


def stored_dtype(source: Source) -> "torch.dtype | None":
    """Return what the weights of a model are stored in, None where nothing says so.

    Its configuration says it, or does not (those of 2019 have no such field); then its first matrix does.
    """
    import torch

    dtype = getattr(own_config(source), "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype
    from ftkit.models.sources.stored import weight_paths

    return first_dtype(next(weight_paths(source), None))


def first_dtype(file: Path | str | None) -> "torch.dtype | None":
    """Return what the first matrix of a file of safetensors is stored in; None: it has none, or there is no file."""
    if file is None:
        return None
    from safetensors import safe_open

    from ftkit.models.sources.positions import DTYPES

    with safe_open(file, "pt") as tensors:
        matrices = (part for part in map(tensors.get_slice, tensors.keys()) if len(part.get_shape()) > 1)
        dtypes = (DTYPES.get(matrix.get_dtype()) for matrix in matrices)
        return next((dtype for dtype in dtypes if dtype is not None and dtype.is_floating_point), None)


def as_stored(weights: "Named", dtype: "torch.dtype") -> "Named":
    """Yield weights in the type that they are stored in; what is not a weight, such as a table of numbers, stays."""
    for name, one in weights:
        yield name, one.to(dtype) if one.is_floating_point() else one


def blocks(tensor: "torch.Tensor", *dtypes: "torch.dtype") -> "Iterator[memoryview]":
    """Yield the bytes of a tensor, some MB at a time, so that no second one is made of a large table.

    Args:
        tensor: on any device.
        dtypes: what its numbers are rounded to, one type after another; those that have no point stay as they are.
    """
    import torch

    for block in tensor.detach().reshape(-1).split(_BLOCK):
        for dtype in dtypes:
            block = block.to(dtype) if block.is_floating_point() else block
        yield block.cpu().view(torch.uint8).numpy().data


def digest(tensor: "torch.Tensor", *dtypes: "torch.dtype") -> int:
    """Return a checksum of a tensor (CRC-32, some GB a second): whether two processes hold the same numbers.

    Args:
        tensor: on any device.
        dtypes: what its numbers are rounded to before, as of `blocks`.
    """
    checksum = 0
    for block in blocks(tensor, *dtypes):
        checksum = zlib.crc32(block, checksum)
    return checksum


def of_other_types(folder: Path, dtype: "torch.dtype") -> list[str]:
    """Return the names of saved tensors whose numbers are of another floating type than they were to be saved in.

    Args:
        folder: of a saved model or adapter.
        dtype: what they were to be saved in.
    """
    from safetensors import safe_open

    from ftkit.models.sources.positions import DTYPES

    others = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            kinds = {name: DTYPES.get(file.get_slice(name).get_dtype(), dtype) for name in file.keys()}  # noqa: SIM118  # not a dictionary
        others += [name for name, kind in kinds.items() if kind.is_floating_point and kind != dtype]
    return others
