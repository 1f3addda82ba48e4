"""Hidden states on a disk: written shard by shard, read where they lie."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from ftkit.data.batching import Indices
from ftkit.errors import DeviceError
from ftkit.machine.disk import UNFINISHED, explained_writing, flush
from ftkit.machine.sealed import is_sound
from ftkit.models.trunk import entries
from ftkit.models.trunk.rows import KeptRows, Rows, row_bytes

SHARD_BYTES = 64 * 2**20
"""Of one shard: what is in memory while an entry is written."""
_FEWEST_SHARDS = 8
"""Of an entry, so that ranks can share the work."""


@dataclass(frozen=True)
class Layout:
    """The places of sequences in an entry: they follow from lengths alone, so any number of ranks can go on with it.

    Attributes:
        shards: the sequences of each shard, longest first, so that those of like length are computed together.
        num_rows: int64 [N], vectors of each sequence.
        width: D.
        dtype: that is kept of the vectors.
    """

    shards: tuple[Indices, ...]
    num_rows: NDArray[np.int64]
    width: int
    dtype: torch.dtype

    @classmethod
    def of(cls, lengths: NDArray[np.int64], width: int, dtype: torch.dtype, *, is_pooled: bool) -> "Layout":
        """Lay out the sequences of a split.

        Args:
            lengths: [N] their tokens.
            width: D.
            dtype: of the vectors.
            is_pooled: whether each has one vector, or one for each token.
        """
        num_rows = np.ones_like(lengths) if is_pooled else lengths
        order = np.argsort(-lengths, kind="stable")
        ends = np.cumsum(num_rows[order])
        total = int(ends[-1]) * row_bytes(width, dtype)
        num_shards = min(len(lengths), max(_FEWEST_SHARDS, -(-total // SHARD_BYTES)))
        borders = np.searchsorted(ends, ends[-1] * np.arange(1, num_shards) / num_shards)
        shards = tuple(part for part in np.split(order, borders) if len(part))
        return cls(shards, num_rows, width, dtype)

    def bytes_of(self, shard: int) -> int:
        """Return the bytes of a shard's vectors."""
        return int(self.num_rows[self.shards[shard]].sum()) * row_bytes(self.width, self.dtype)


class Hidden:
    """The hidden states of a split, in files that are mapped into memory: pages come when they are read."""

    def __init__(self, path: Path, layout: Layout, *, is_pooled: bool) -> None:
        """Open an entry whose shards are all there.

        Args:
            path: its folder.
            layout: of its sequences.
            is_pooled: whether each has one vector.

        Raises:
            DeviceError: a shard is not there.
        """
        self.is_pooled = is_pooled
        self._shards = [_open(path, number) for number in range(len(layout.shards))]
        self._shard = np.empty(len(layout.num_rows), dtype=np.int64)
        self._first, self._num_rows = np.empty_like(self._shard), layout.num_rows
        for number, sequences in enumerate(layout.shards):
            self._shard[sequences] = number
            self._first[sequences] = np.cumsum(layout.num_rows[sequences]) - layout.num_rows[sequences]

    @property
    def error(self) -> float | None:
        """What 8 bits have lost: the length of the difference by the length of the vectors; None where nothing is."""
        squares = [shard.squares for shard in self._shards if shard.squares is not None]
        if not squares:
            return None
        missed, given = torch.stack(squares).sum(dim=0).tolist()
        return float((missed / given) ** 0.5) if given else 0.0

    def states(self, sequences: Indices) -> list[torch.Tensor]:
        """Return the vectors of some sequences, [rows, D] each."""
        return [
            self._shards[self._shard[one]][self._first[one] : self._first[one] + self._num_rows[one]]
            for one in sequences
        ]


def write_shard(path: Path, number: int, rows: Rows) -> None:
    """Write a shard of an entry: aside, flushed, renamed.

    Args:
        path: the entry's folder.
        number: of the shard.
        rows: its vectors.

    Raises:
        DeviceError: the disk is full or not writable.
    """
    aside = path / f"{number}-{os.getpid()}{UNFINISHED}"
    with explained_writing(path, entries.ELSEWHERE):
        path.mkdir(parents=True, exist_ok=True)
        try:
            save_file(rows.tensors(), aside)
            flush(aside)
            entries.seal_shard(aside, number)
            flush(path)
        finally:
            aside.unlink(missing_ok=True)


def missing_shards(path: Path, numbers: Iterable[int]) -> list[int]:
    """Return which of some shards are not there, or are not what was written; the latter are removed."""
    missing = []
    for number in numbers:
        shard = entries.find_shard(path, number)
        if shard is not None and is_sound(shard):
            continue
        if shard is not None:
            shard.unlink()
        missing.append(number)
    return missing


def _open(path: Path, number: int) -> KeptRows:
    shard = entries.find_shard(path, number)
    if shard is None:
        raise DeviceError(
            f"{path} lacks the shard {number}, which another rank has written; ranks on several machines need one "
            f"folder for all: {entries.ELSEWHERE}"
        )
    with safe_open(shard, framework="pt") as file:
        return KeptRows({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # it is not a mapping
