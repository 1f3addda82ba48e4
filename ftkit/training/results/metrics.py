"""The figures of predictions, computed from the logits of a whole split.

Dimension letters: C class, N sequences.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftkit.data.arrays import Labels
from ftkit.records.schema import LabelsLine
from ftkit.records.scores import LabelScores, Scores

Array = NDArray[Any]


def labels_line(labels: Labels | None) -> LabelsLine | None:
    """Return what a record says of the labels; None where there are none."""
    if labels is None:
        return None
    standard = labels.standard
    return LabelsLine(kind=labels.kind, names=labels.names, mean=standard.mean, deviation=standard.deviation)


def figures_of(logits: NDArray[np.float32], true: Array, labels: Labels) -> dict[str, Any]:
    """Return the figures of a model's outputs.

    Args:
        logits: [N, C]; of a number [N, 1].
        true: the labels, as a `TokenSplit` has them.
        labels: their kind and names.

    Returns:
        Fields of `Scores`.
    """
    answered = answers_of(logits, labels)
    if labels.kind == "single":
        num = len(labels.names)
        counts = np.bincount(true * num + answered, minlength=num * num)
        return class_figures(counts.reshape(num, num), labels.names)
    if labels.kind == "regression":
        return number_figures(answered, labels.standard.restored(true))
    hits = ((answered == 1) & (true == 1)).sum(axis=0)
    sets = np.unique(true, axis=0, return_counts=True)[1]
    return {
        **label_figures(hits, answered.sum(axis=0), true.sum(axis=0), labels.names),
        "exact_match": float((answered == true).all(axis=1).mean()),
        "baseline": float(sets.max() / len(true)),
    }


def answers_of(logits: NDArray[np.float32], labels: Labels) -> Array:
    """Return the answers that a model's outputs stand for.

    Args:
        logits: [N, C]; of a number [N, 1].
        labels: their kind.

    Returns:
        The class of the largest logit, int64 [N]; which labels have a logit above 0, a sigmoid of one half, int8
        [N, C]; or the number in the data's units, float64 [N].
    """
    if labels.kind == "single":
        return np.asarray(logits.argmax(axis=1))
    if labels.kind == "multi":
        return (logits > 0).astype(np.int8)
    return labels.standard.restored(logits[:, 0].astype(np.float64))


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
