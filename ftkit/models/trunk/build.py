"""Compute hidden states: one pass of inference over the sequences that an entry of the cache lacks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ftkit.config.tree import BatchConfig
from ftkit.data import batching
from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import Indices, Padding
from ftkit.errors import ModelError
from ftkit.models.padding import tolerance_of
from ftkit.models.trunk.closed import closed
from ftkit.models.trunk.cut import Cut, crossing
from ftkit.models.trunk.rows import Rows
from ftkit.models.trunk.store import Layout, write_shard

_NUM_PROBED = 4
_LONGEST_PROBED = 256
"""Tokens of a sequence that is tried out, where there are such short ones."""


@dataclass(frozen=True)
class Pass:
    """The trunk, and how sequences are run through it.

    Attributes:
        model: not closed, on its device, in evaluation mode.
        cut: where its trunk ends.
        batch: the limits of a micro-batch: those of training, so that a sequence which trains alone is computed alone.
        padding: what fills up, and where.
        device: of the model.
        dtype: what is kept.
    """

    model: nn.Module
    cut: Cut
    batch: BatchConfig
    padding: Padding
    device: torch.device
    dtype: torch.dtype


def probed(split: TokenSplit) -> Indices:
    """Choose a few sequences of unequal length to try a model out on.

    Args:
        split: where they are.

    Returns:
        Their places, shortest first.
    """
    lengths, rows = np.unique(split.lengths, return_index=True)
    num_short = max(1, int((lengths <= _LONGEST_PROBED).sum()))
    chosen = np.linspace(0, num_short - 1, min(_NUM_PROBED, num_short)).astype(int)
    return np.asarray(rows[chosen])


def check_closed(work: Pass, split: TokenSplit) -> None:
    """Compare the logits of a model that runs whole with those that it gives from the cut on.

    Args:
        work: the trunk.
        split: has sequences to try it out on.

    Raises:
        ModelError: the model does not run from the cut on, or gives other logits.
    """
    rows = probed(split)
    micro_batch = batching.collate(split, rows, work.padding, work.device)
    with torch.inference_mode():
        whole = work.model(**micro_batch.inputs()).logits.float()
    states = crossing(work.model, work.cut, micro_batch)
    held = replace(split, hidden=_Held(dict(zip(rows.tolist(), states, strict=True)), work.cut.is_pooled))
    tried = batching.collate(held, rows, work.padding, work.device)
    try:
        with closed(work.model, work.cut), torch.inference_mode():
            head = work.model(**tried.inputs()).logits.float()
    except Exception as error:  # the code of any model may need what the trunk alone knows
        raise ModelError(f"it does not run from {work.cut.entry} on ({type(error).__name__}: {error})") from error
    if whole.dim() == 3 and (mask := micro_batch.attention_mask) is not None:
        whole, head = whole[mask == 1], head[mask == 1]
    missed = float((whole - head).abs().max() / whole.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    if not missed <= tolerance_of(work.cut.dtype, 1):
        raise ModelError(f"from {work.cut.entry} on it gives other logits, by {missed:.2g} of the largest")


def write_shards(
    work: Pass, split: TokenSplit, layout: Layout, path: Path, numbers: Iterable[int], told: Callable[[int], None]
) -> None:
    """Compute some shards of an entry and write each when it is whole.

    Args:
        work: the trunk.
        split: the sequences.
        layout: of the entry.
        path: the entry's folder.
        numbers: of the shards; of this rank.
        told: of the bytes of each shard that is written.

    Raises:
        DeviceError: the disk is full or not writable; the shards before are kept.
        ModelError: as `crossing`, or what crosses cannot be kept as it is asked for.
    """
    for number in numbers:
        write_shard(path, number, _compute(work, split, layout, number))
        told(layout.bytes_of(number))


def _compute(work: Pass, split: TokenSplit, layout: Layout, number: int) -> Rows:
    """Return the vectors of a shard."""
    sequences = layout.shards[number]
    num_rows = layout.num_rows[sequences]
    first = np.cumsum(num_rows) - num_rows
    rows = Rows(int(num_rows.sum()), layout.width, layout.dtype)
    for places in batching.cut(split.lengths[sequences], work.batch, 1)[0]:
        micro_batch = batching.collate(split, sequences[places], work.padding, work.device)
        for place, states in zip(places, crossing(work.model, work.cut, micro_batch), strict=True):
            rows.put(int(first[place]), states)
    return rows


@dataclass(frozen=True)
class _Held:
    """The hidden states of a few sequences, in memory."""

    of: dict[int, torch.Tensor]
    is_pooled: bool

    def states(self, sequences: Indices) -> list[torch.Tensor]:
        return [self.of[int(one)] for one in sequences]
