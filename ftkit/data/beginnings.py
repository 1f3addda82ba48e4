"""The first tokens of some sequences, for checks that need no more of them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ftkit.data.arrays import Hidden, TokenSplit


def beginnings(split: TokenSplit, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> TokenSplit:
    """Return the first tokens of some sequences of a split.

    Args:
        split: where they are.
        rows: their numbers, [K].
        lengths: the tokens that are left of each, [K], one at least; where a sequence has one label, all of them.

    Returns:
        The K sequences, with their targets or labels, and with the hidden states of what is left.
    """
    places = np.concatenate([np.arange(length) + split.offsets[row] for row, length in zip(rows, lengths, strict=True)])
    is_per_token = split.labels.dtype == np.bool_
    return TokenSplit(
        split.tokens[places],
        np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        split.labels[places if is_per_token else split.texts_of(rows)],
        None if split.segments is None else split.segments[places],
        None if split.hidden is None else _FirstStates(split.hidden, rows, lengths if is_per_token else None),
    )


def lengths_to_target(split: TokenSplit, rows: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Return the tokens of some sequences up to and including target number `number`, [K]; all, where fewer.

    Args:
        split: of a language model.
        rows: the sequences, [K].
        number: of the target, from 1.
    """
    lengths = []
    for row in rows:
        carries = split.labels[split.offsets[row] : split.offsets[row + 1]]
        places = np.flatnonzero(carries)
        lengths.append(places[number - 1] + 1 if len(places) >= number else len(carries))
    return np.array(lengths, dtype=np.int64)


@dataclass(frozen=True)
class _FirstStates:
    """The first hidden states of some sequences; of a language model they do not depend on those that follow."""

    hidden: Hidden
    rows: NDArray[np.int64]
    lengths: NDArray[np.int64] | None

    @property
    def is_pooled(self) -> bool:
        return self.hidden.is_pooled

    def states(self, sequences: NDArray[np.int64]) -> list[torch.Tensor]:
        whole = self.hidden.states(self.rows[sequences])
        if self.lengths is None:
            return whole
        return [states[:length] for states, length in zip(whole, self.lengths[sequences], strict=True)]
