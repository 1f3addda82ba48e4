"""The arrays that training reads: flat tokens, ragged by offsets, and what is known of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ftkit.config.tree import SPLITS, LabelKind, Task
from ftkit.data.standard import AS_THEY_ARE, Standard

if TYPE_CHECKING:
    import torch

    from ftkit.data.examples import Examples  # with Arrow, whose import would be a fortieth of a plan
    from ftkit.data.report import DataReport


class Hidden(Protocol):
    """What the frozen trunk of a model made of the sequences of a split."""

    @property
    def is_pooled(self) -> bool:
        """Whether each sequence has one vector; else it has one for each of its tokens."""

    def states(self, sequences: NDArray[np.int64]) -> "list[torch.Tensor]":
        """Return the vectors of some sequences, [rows, D] each, on the CPU."""


@dataclass(frozen=True)
class TokenSplit:
    """The sequences of one split, end to end: sequence i is `tokens[offsets[i]:offsets[i + 1]]`, never padded.

    Attributes:
        tokens: int32 [total tokens].
        offsets: int64 [N + 1], the first 0, the last the total.
        labels: classification: int64 [N]; of several labels a text int8 [N, C] of 0 and 1; numbers to predict: float64
            [N]; causal-lm: bool [total tokens], True where the token is a target and carries loss. The first token of a
            sequence never does, since nothing predicts it.
        segments: int8 [total tokens], BERT's `token_type_ids` of pairs; None where the tokenizer gives none.
        hidden: what a frozen trunk made of them; None where the model runs whole.
        windows: int64 [texts + 1]: text i has the sequences windows[i] to before windows[i + 1], and the labels are
            those of texts; None: each text is one sequence.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    labels: NDArray[Any]
    segments: NDArray[np.int8] | None = None
    hidden: Hidden | None = None
    windows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return N, the number of sequences."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, int64 [N]."""
        return np.diff(self.offsets)

    @property
    def num_texts(self) -> int:
        """Texts, which have one sequence each where there are no windows."""
        return len(self) if self.windows is None else len(self.windows) - 1

    def rows_of(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sequences of some texts, text by text."""
        if self.windows is None:
            return texts
        counts = self.windows[texts + 1] - self.windows[texts]
        firsts = np.repeat(self.windows[texts] - (np.cumsum(counts) - counts), counts)
        return np.asarray(firsts + np.arange(len(firsts)), np.int64)

    def texts_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the text of each of some sequences."""
        return rows if self.windows is None else np.searchsorted(self.windows, rows, side="right") - 1

    def shares_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return what each of some sequences counts of its text, so that each text counts 1; None: all are texts."""
        if self.windows is None:
            return None
        return np.asarray(1 / np.diff(self.windows)[self.texts_of(rows)], np.float32)

    def averaged(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean over the sequences of each text, [texts, C], of values for each sequence, [N, C]."""
        if self.windows is None:
            return values
        sums = np.add.reduceat(values, self.windows[:-1], axis=0, dtype=np.float64)
        return np.asarray(sums / np.diff(self.windows)[:, None], np.float32)

    @property
    def num_targets(self) -> NDArray[np.int64]:
        """Targets of each text, int64 [N]: its label, each of C labels, or the tokens that carry loss."""
        if self.labels.dtype != np.bool_:
            return np.full(self.num_texts, self.labels.shape[1] if self.labels.ndim == 2 else 1, dtype=np.int64)
        # No sequence is empty, as `reduceat` has to know.
        return np.add.reduceat(self.labels, self.offsets[:-1], dtype=np.int64)


@dataclass(frozen=True)
class Labels:
    """The labels of a dataset.

    Attributes:
        kind: one class of a text, several labels, or a number.
        names: the name of label i at place i; of a number to predict its own.
        standard: how numbers to predict were brought to mean 0 and deviation 1.
    """

    kind: LabelKind
    names: tuple[str, ...]
    standard: Standard = AS_THEY_ARE


@dataclass(frozen=True)
class PreparedData:
    """Three splits of token sequences, the names of their labels, and how they came about.

    Attributes:
        task: what the labels are for.
        train: the split that trains.
        validation: the split that validates, or None.
        test: the split of the final scores, or None.
        labels: what they are; None for causal-lm.
        fingerprint: SHA-256 over every array and the label names: what a run was trained on.
        report: what was found, dropped and cut.
        examples: the texts of validation and test, where they have labels.
    """

    task: Task
    train: TokenSplit
    validation: TokenSplit | None
    test: TokenSplit | None
    labels: Labels | None
    fingerprint: str
    report: "DataReport"
    examples: Mapping[str, "Examples"] = field(default_factory=dict)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The name of label i at place i; None for causal-lm."""
        return None if self.labels is None else self.labels.names

    @property
    def label_kind(self) -> LabelKind | None:
        """The kind of the labels; None for causal-lm."""
        return None if self.labels is None else self.labels.kind

    @property
    def named(self) -> dict[str, TokenSplit]:
        """The splits that there are, by name."""
        return {name: split for name in SPLITS if (split := getattr(self, name)) is not None}

    @property
    def splits(self) -> tuple[TokenSplit, ...]:
        """The splits that there are."""
        return tuple(self.named.values())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence of any split."""
        return int(max(split.lengths.max() for split in self.splits))

    @property
    def highest_token(self) -> int:
        """The highest number of a token in any split."""
        return max(int(split.tokens.max()) for split in self.splits)


def fingerprint(splits: tuple[TokenSplit | None, ...], label_names: tuple[str, ...] | None) -> str:
    """Return the SHA-256 of arrays and label names, in hexadecimal.

    Args:
        splits: the splits in a fixed order; None where there is none.
        label_names: the names of the labels, or None.

    Returns:
        64 characters.
    """
    digest = hashlib.sha256(repr(label_names).encode())
    for split in splits:
        arrays = () if split is None else (split.tokens, split.offsets, split.labels, split.segments)
        if split is not None and split.windows is not None:
            arrays = (*arrays, split.windows)
        digest.update(f"split of {len(arrays)}".encode())
        for array in arrays:
            digest.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
