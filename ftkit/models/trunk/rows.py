"""Vectors as the cache keeps them: as they came, or in 8 bits.

In 8 bits, each block of 64 elements of a vector has a scale of its own, by which its largest element is 127. The few
elements of a language model's hidden states that are a hundred times as large as the others (LLM.int8(), arXiv
2208.07339) so coarsen their own block alone.

Dimension letters: R rows (vectors of one sequence after another), D model, S blocks of a vector.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ftkit.errors import ModelError

BLOCK = 64
"""Elements of a vector that share a scale."""
_VALUES, _SCALES, _ERROR = "hidden", "scale", "error"
_LARGEST = 127
_SCALE_DTYPE = torch.float32


def row_bytes(width: int, dtype: torch.dtype) -> int:
    """Return the bytes of one vector in the cache.

    Args:
        width: D.
        dtype: that is kept; `int8` has scales beside it.
    """
    scales = _num_blocks(width) * _SCALE_DTYPE.itemsize if dtype == torch.int8 else 0
    return width * dtype.itemsize + scales


def read_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which vectors leave the cache: bf16 where 8 bits are kept, whose steps are as fine."""
    return torch.bfloat16 if dtype == torch.int8 else dtype


class Rows:
    """The vectors of a shard while they are made."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype) -> None:
        """Make room.

        Args:
            num_rows: R.
            width: D.
            dtype: that is kept.
        """
        self._values_RD = torch.empty(num_rows, width, dtype=dtype)
        self._scales_RS = torch.empty(num_rows, _num_blocks(width), dtype=_SCALE_DTYPE)
        self._squares = torch.zeros(2, dtype=torch.float64)

    def put(self, first: int, states_RD: torch.Tensor) -> None:
        """Keep the vectors of a sequence.

        Args:
            first: its first row.
            states_RD: [rows, D], on any device.

        Raises:
            ModelError: 8 bits cannot hold them, since some are not finite.
        """
        place = slice(first, first + len(states_RD))
        if self._values_RD.dtype != torch.int8:
            self._values_RD[place] = states_RD
            return
        given_RD = states_RD.detach().cpu().float()
        if not given_RD.isfinite().all():
            raise ModelError("hidden states that are not finite cannot be kept in 8 bits; take cache.dtype=auto")
        self._values_RD[place], self._scales_RS[place] = _packed(given_RD)
        missed_RD = given_RD - _unpacked(self._values_RD[place], self._scales_RS[place])
        self._squares += torch.stack((missed_RD.double().square().sum(), given_RD.double().square().sum()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the shard's file."""
        if self._values_RD.dtype != torch.int8:
            return {_VALUES: self._values_RD}
        return {_VALUES: self._values_RD, _SCALES: self._scales_RS, _ERROR: self._squares}


class KeptRows:
    """The vectors of a shard that was read."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Open them.

        Args:
            tensors: what `Rows.tensors` returned.
        """
        self._values_RD, self._scales_RS = tensors[_VALUES], tensors.get(_SCALES)
        self.squares = tensors.get(_ERROR)
        """The sums of the squares of what rounding to 8 bits missed, and of what was given, fp64 [2]; None: exact."""

    def __getitem__(self, place: slice) -> torch.Tensor:
        """Return some vectors, [rows, D]: where they lie, or made of their 8 bits."""
        values_RD = self._values_RD[place]
        if self._scales_RS is None:
            return values_RD
        return _unpacked(values_RD, self._scales_RS[place]).to(read_dtype(torch.int8))


def _num_blocks(width: int) -> int:
    return -(-width // BLOCK)


def _blocks(values_RD: torch.Tensor) -> torch.Tensor:
    """Return vectors as blocks, [R, S, 64], the last one filled up with zeros."""
    missing = _num_blocks(values_RD.shape[1]) * BLOCK - values_RD.shape[1]
    padded: torch.Tensor = nn.functional.pad(values_RD.float(), (0, missing))
    return padded.view(len(padded), -1, BLOCK)


def _packed(given_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = _blocks(given_RD)
    scales_RS = blocks.abs().amax(dim=2) / _LARGEST
    steps = blocks / scales_RS.clamp_min(torch.finfo(_SCALE_DTYPE).tiny)[..., None]
    return steps.round().to(torch.int8).flatten(1)[:, : given_RD.shape[1]], scales_RS


def _unpacked(values_RD: torch.Tensor, scales_RS: torch.Tensor) -> torch.Tensor:
    return (_blocks(values_RD) * scales_RS[..., None]).flatten(1)[:, : values_RD.shape[1]]
