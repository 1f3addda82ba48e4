"""The figures of predictions: summed batch by batch on the device and over ranks, then computed once.

Dimension letters: B batch, C class, N sequences.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ftkit.data.arrays import Labels, TokenSplit
from ftkit.data.batching import Indices
from ftkit.data.standard import Standard
from ftkit.records.schema import LabelScores, Scores

Sum = Callable[[torch.Tensor], torch.Tensor]
"""Returns the sum of a tensor over all ranks."""
Array = NDArray[Any]


class Tally(Protocol):
    """Counts the predictions of a split; no logit outlives its micro-batch."""

    def add(self, rows: Indices, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a micro-batch: its sequences' places in the split [B], logits [B, C], labels as in a MicroBatch."""

    def figures(self, sum_over_ranks: Sum) -> dict[str, Any]:
        """Return the fields of `Scores`; called by every rank."""


def tally_of(split: TokenSplit, labels: Labels, device: torch.device) -> Tally:
    """Return what counts predictions of labels of a kind.

    Args:
        split: what is scored.
        labels: their kind and names.
        device: where the logits are.
    """
    if labels.kind == "single":
        return _ClassTally(labels.names, device)
    if labels.kind == "multi":
        return _LabelTally(split, labels.names, device)
    return _NumberTally(split, labels.standard, device)


class _ClassTally:
    """A confusion matrix."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = names
        self._matrix_CC = torch.zeros(len(names), len(names), dtype=torch.float64, device=device)

    def add(self, rows: Indices, logits: torch.Tensor, labels: torch.Tensor) -> None:  # noqa: ARG002  # see Tally
        num = len(self._names)
        pairs = labels * num + logits.argmax(dim=-1)
        self._matrix_CC += torch.bincount(pairs, minlength=num * num).view(num, num)

    def figures(self, sum_over_ranks: Sum) -> dict[str, Any]:
        matrix = sum_over_ranks(self._matrix_CC).cpu().numpy()
        return class_figures(matrix.astype(np.int64), self._names)


class _LabelTally:
    """Hits, answers and truths of each label, and texts that are right as a whole."""

    def __init__(self, split: TokenSplit, names: Sequence[str], device: torch.device) -> None:
        self._names, self._true_NC = names, split.labels
        self._counts = torch.zeros(2, len(names), dtype=torch.float64, device=device)
        self._num_exact = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, rows: Indices, logits: torch.Tensor, labels: torch.Tensor) -> None:  # noqa: ARG002  # see Tally
        answered, true = logits > 0, labels == 1  # a sigmoid of one half
        counts, num_exact = torch.stack([(answered & true).sum(0), answered.sum(0)]), (answered == true).all(1).sum()
        self._counts += counts
        self._num_exact += num_exact

    def figures(self, sum_over_ranks: Sum) -> dict[str, Any]:
        hits, answered = sum_over_ranks(self._counts).cpu().numpy()
        num_texts = len(self._true_NC)
        sets = np.unique(self._true_NC, axis=0, return_counts=True)[1]
        return {
            **label_figures(hits, answered, self._true_NC.sum(axis=0), self._names),
            "exact_match": float(sum_over_ranks(self._num_exact)) / num_texts,
            "baseline": float(sets.max() / num_texts),
        }


class _NumberTally:
    """All predicted numbers: ranks need every one of them."""

    def __init__(self, split: TokenSplit, standard: Standard, device: torch.device) -> None:
        self._standard, self._true_N = standard, standard.restored(split.labels)
        self._predicted_N = torch.zeros(len(split), dtype=torch.float64, device=device)

    def add(self, rows: Indices, logits: torch.Tensor, labels: torch.Tensor) -> None:  # noqa: ARG002  # see Tally
        places = torch.as_tensor(rows, device=logits.device)
        self._predicted_N[places] = logits.squeeze(-1).to(torch.float64)

    def figures(self, sum_over_ranks: Sum) -> dict[str, Any]:
        # Each rank has left zeros where others predicted.
        predicted = sum_over_ranks(self._predicted_N).cpu().numpy()
        return number_figures(self._standard.restored(predicted), self._true_N)


def class_figures(matrix: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a confusion matrix.

    Args:
        matrix: [C, C], row: true, column: predicted.
        names: of the classes.

    Returns:
        Fields of `Scores`. Classes that are neither true nor predicted do not count in the means, as in scikit-learn.
    """
    hits, true, answered = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    per_label = _per_label(hits, answered, true, names)
    f1 = np.array([one.f1 for one in per_label])
    return {
        "accuracy": float(hits.sum() / matrix.sum()),
        "f1_macro": float(f1[true + answered > 0].mean()),
        "f1_weighted": float((f1 * true).sum() / true.sum()),
        "baseline": float(true.max() / true.sum()),
        "confusion": matrix.tolist(),
        "per_label": per_label,
    }


def label_figures(hits: Array, answered: Array, true: Array, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of labels of which a text has several.

    Args:
        hits: [C], texts that have a label and were given it.
        answered: [C], texts that were given it.
        true: [C], texts that have it.
        names: of the labels.

    Returns:
        Fields of `Scores`; every label counts in the means, as in scikit-learn.
    """
    per_label = _per_label(hits, answered, true, names)
    f1 = np.array([one.f1 for one in per_label])
    return {
        "f1_macro": float(f1.mean()),
        "f1_micro": _ratio(2 * hits.sum(), true.sum() + answered.sum()),
        "f1_weighted": _ratio((f1 * true).sum(), true.sum()),
        "per_label": per_label,
    }


def number_figures(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, Any]:
    """Return the figures of predicted numbers; a correlation with what is all the same is None.

    Args:
        predicted: [N], in the data's units.
        true: [N].

    Returns:
        Fields of `Scores`.
    """
    missed = predicted - true
    return {
        "pearson": _correlation(predicted, true),
        "spearman": _correlation(_ranks(predicted), _ranks(true)),
        "mae": float(np.abs(missed).mean()),
        "rmse": float(np.sqrt(np.square(missed).mean())),
        "baseline": float(true.std()),
    }


def _per_label(hits: Array, answered: Array, true: Array, names: Sequence[str]) -> tuple[LabelScores, ...]:
    return tuple(
        LabelScores(
            name=name,
            precision=_ratio(hit, given),
            recall=_ratio(hit, there),
            f1=_ratio(2 * hit, given + there),
            support=int(there),
            num_predicted=int(given),
        )
        for name, hit, given, there in zip(names, hits, answered, true, strict=True)
    )


def _ratio(part: float, whole: float) -> float:
    """Return a ratio, 0 where nothing is there to divide by, as scikit-learn does."""
    return float(part / whole) if whole else 0.0


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    one, other = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.clip(one @ other / size, -1.0, 1.0)) if size > 0 else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray(((ends - counts + 1 + ends) / 2)[places])


def remarks(split: str, scores: Scores, labels: Labels | None) -> list[str]:
    """Return warnings of scores that flatter, a line each.

    Args:
        split: what was scored.
        scores: the scores.
        labels: their kind and names; None for a language model, which has no such scores.
    """
    if labels is None:
        return []
    if labels.kind == "regression":
        return [] if scores.pearson is not None else [f"warning: {split}: all predictions are the same number"]
    per_label = scores.per_label or ()
    answered = [one for one in per_label if one.num_predicted]
    if labels.kind == "multi":
        return [] if answered else [f"warning: {split}: no text is given any label"]
    accuracy, baseline = scores.accuracy or 0.0, scores.baseline or 0.0
    lines = []
    if len(answered) == 1:
        lines.append(f"warning: {split}: all {scores.num_samples:,} texts are answered {answered[0].name!r}")
    if accuracy <= baseline:
        most = max(per_label, key=lambda one: one.support)
        lines.append(
            f"warning: {split}: an accuracy of {accuracy:.4f} is not above that of always answering {most.name!r}, "
            f"{baseline:.4f}"
        )
    return lines
