"""Where a model's sequences may be padded: found by running two of them alone and together, before anything trains.

No sequence's logits may depend on what stands beside it in a micro-batch. Nearly every model keeps to that when it is
padded on the right. XLNet classifies at the last place of a row and needs the left; code that mixes places without a
mask (FNet, ConvBERT) reads the padding on either side, and then sequences run one at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from ftkit.config.tree import BatchConfig
from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import Indices, MicroBatch, Padding, Side, collate

Logits = Callable[[MicroBatch], torch.Tensor]

_ENOUGH = 128
"""Tokens in the longer sequence that are enough to tell, where there is a choice."""
_NUM_TRIES = 3
"""Pairs in 16 bits: the rounding of another shape may send a token to another expert, but not in every pair."""
_ROUNDINGS = {torch.float32: 16, torch.bfloat16: 4, torch.float16: 4}
"""Roundings of the largest logit that two layers may make, by what computes (weights in 4 bits are the same in every
shape). Seen in 30 layers of SmolLM2: 18 in fp32 and 7.4 in bf16, where 62 and 15 are allowed."""
_NOISE = 10
"""How many times more a padded sequence may differ than its neighbour, which only sees another shape."""


@dataclass(frozen=True)
class Found:
    """What padding does to a model's logits.

    Attributes:
        side: the side that changes nothing; None: each does.
        error: the change on the last side tried, as a share of the largest logit.
        tolerance: the share that rounding explains.
    """

    side: Side | None
    error: float
    tolerance: float


def unequal_pairs(split: TokenSplit, batch: BatchConfig, dtype: torch.dtype) -> list[Indices]:
    """Choose sequences of unequal length, two by two, that could be in one micro-batch.

    Args:
        split: whose sequences.
        batch: the cut.
        dtype: what computes.

    Returns:
        The rows of each pair, the shorter sequence first; nothing where no sequence is ever padded.
    """
    lengths, rows = np.unique(split.lengths, return_index=True)
    limit = int(lengths[-1]) if batch.token_limit is None else batch.token_limit // 2
    fitting = int((lengths <= limit).sum())
    if batch.micro_batch_size == 1 or fitting < 2:
        return []
    longer = max(1, int((lengths[:fitting] <= _ENOUGH).sum()) - 1)
    num_pairs = 1 if dtype == torch.float32 else min(_NUM_TRIES, longer)
    return [rows[[shorter, longer]] for shorter in range(num_pairs)]


def find_side(
    logits: Logits, split: TokenSplit, pairs: Sequence[Indices], token_id: int, device: torch.device, tolerance: float
) -> Found:
    """Find the side on which padding changes no logit.

    Args:
        logits: runs the model on a micro-batch, without gradients; every rank calls with the same ones.
        split: where the sequences are.
        pairs: what `unequal_pairs` returned, one at least; a side will do where one of them shows no change.
        token_id: what fills up.
        device: of the model.
        tolerance: of the model, as a share of the largest logit.

    Returns:
        The right side where both will do.
    """
    found = Found(None, 0.0, tolerance)
    for side in get_args(Side):
        for pair in pairs:
            alone = [_rows(logits, collate(split, row[None], Padding(token_id), device))[0] for row in pair]
            together = _rows(logits, collate(split, pair, Padding(token_id, side), device))
            size = max(float(max(one.abs().max() for one in alone)), torch.finfo(torch.float32).tiny)
            error, noise = (_distance(one, other) / size for one, other in zip(together, alone, strict=True))
            found = Found(side, error, max(tolerance, _NOISE * noise))
            if error <= found.tolerance:
                return found
    return Found(None, found.error, found.tolerance)


def tolerance_of(dtype: torch.dtype, num_layers: int) -> float:
    """Return how much of a logit rounding may change where the same sequence is computed in another shape.

    Args:
        dtype: what computes.
        num_layers: of the model; their roundings add up like a random walk.
    """
    return float(torch.finfo(dtype).eps * _ROUNDINGS[dtype] * max(1.0, num_layers / 2) ** 0.5)


def _rows(logits: Logits, micro_batch: MicroBatch) -> list[torch.Tensor]:
    """Return the logits of each sequence in fp32, those of its tokens alone: [C] or [T, V]."""
    out, mask_BT = logits(micro_batch).float(), micro_batch.attention_mask
    if out.dim() == 2 or mask_BT is None:
        return list(out)
    return [one[mask == 1] for one, mask in zip(out, mask_BT, strict=True)]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference; what is not a number differs from everything."""
    return float((one - other).abs().max().nan_to_num(float("inf")))
