"""Answers to every sequence by a regression that has not seen it.

Dimension letters: N sequences, C classes.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ftkit.models.logistic import PENALTIES, Apart, Problem, path

_FLAT = 1e-6
"""Of a gradient, in a study: answers do not change any more, and it takes a fraction of the time."""
_TRIED = PENALTIES[::2]
SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)
"""Of the sequences outside a fold: the points of a learning curve."""


@dataclass(frozen=True)
class OutOfFold:
    """The answers of regressions to the sequences that they have not seen.

    Attributes:
        probabilities_NC: fp64.
        penalty: of all regressions, the one of the smallest loss; a single number that all folds share, so what the
            choice flatters is small.
    """

    probabilities_NC: NDArray[np.float64]
    penalty: float


def draw_folds(
    labels: NDArray[np.int64], num_folds: int, seed: int, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the number of the fold of each sequence, [N].

    Args:
        labels: classes, [N]; where there are no groups, each fold gets its share of each class.
        num_folds: how many.
        seed: of the draw.
        groups: [N]; sequences of a group stay in one fold, the largest group placed first, in the smallest fold.
    """
    random, folds = np.random.default_rng(seed), np.empty(len(labels), dtype=np.int64)
    if groups is None:
        order = random.permutation(len(labels))
        folds[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % num_folds
        return folds
    names, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    fold_of, held = np.empty(len(names), dtype=np.int64), np.zeros(num_folds, dtype=np.int64)
    shuffled = random.permutation(len(names))
    for name in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[name] = held.argmin()
        held[fold_of[name]] += sizes[name]
    return fold_of[place]


def out_of_fold(apart: Apart, folds: NDArray[np.int64], penalties: Sequence[float] = _TRIED) -> OutOfFold:
    """Answer each sequence by the regression that was fitted to the other folds.

    Args:
        apart: of regressions of classes, such as `Problem.apart`.
        folds: of each sequence, [N].
        penalties: to choose from, the strongest first.

    Returns:
        The answers under the penalty of the smallest loss.
    """
    answers: dict[float, list[NDArray[np.float64]]] = defaultdict(list)
    losses: dict[float, float] = defaultdict(float)
    for fold in np.unique(folds):
        seen, unseen = apart(folds == fold)
        for layer in path(seen, penalties, _FLAT):
            logits = layer.logits(unseen.features_ND)
            losses[layer.penalty] += float(unseen.loss(logits)) * len(unseen.labels)
            answers[layer.penalty].append(logits.softmax(dim=1).numpy())
    best = min(penalties, key=losses.__getitem__)
    by_fold = np.concatenate(answers[best])
    probabilities = np.empty_like(by_fold)
    probabilities[np.argsort(folds, kind="stable")] = by_fold
    return OutOfFold(probabilities, best)


def learning_curve(
    problem: Problem, folds: NDArray[np.int64], penalty: float, seed: int
) -> list[tuple[int, NDArray[np.float64]]]:
    """Return how often regressions on fewer sequences are right.

    Args:
        problem: of classes.
        folds: of each sequence, [N].
        penalty: for all sequences outside a fold; stronger for fewer, as one penalty on a sum of losses would be.
        seed: of the draw.

    Returns:
        For each size the sequences that were seen (a mean over the folds), and the accuracy in each fold.
    """
    order = np.random.default_rng(seed).permutation(len(folds))
    points = []
    for share in SHARES:
        sizes, right = [], []
        for fold in np.unique(folds):
            outside = order[folds[order] != fold]
            seen = np.zeros(len(folds), dtype=np.bool_)
            seen[outside[: max(problem.num_labels, round(share * len(outside)))]] = True
            (layer,) = path(problem.part(seen), [min(1.0, penalty / share)], _FLAT)
            unseen = problem.part(folds == fold)
            answers = layer.logits(unseen.features_ND).argmax(dim=1)
            sizes.append(int(seen.sum()))
            right.append(float((answers == unseen.labels).double().mean()))
        points.append((round(float(np.mean(sizes))), np.array(right)))
    return points


def as_problem(features: torch.Tensor, labels: NDArray[np.int64], num_labels: int) -> Problem:
    """Return a regression of classes, [N]."""
    return Problem(features, torch.from_numpy(labels), num_labels)
