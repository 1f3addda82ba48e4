"""Logistic regression on features: the exact optimum, by L-BFGS in fp64.

What is minimized is the mean loss over the targets plus `penalty / 2` times the sum of the squared weights, biases left
out. It is convex, so there is one optimum, and where it is does not depend on a seed, a rate or a batch.

Dimension letters: N sequences, D features, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

PENALTIES = tuple(10.0 ** (-power / 2) for power in range(12))
"""Tried from the strongest, 1, down to 3e-6, each from where the one before ended."""
_MOST_STEPS = 500
FLAT = 1e-9
"""Of the largest entry of the gradient, in losses of about 1: sixteen digits leave no more room below."""


@dataclass(frozen=True)
class Linear:
    """A linear layer in fp64.

    Attributes:
        weight_CD: of features that are as they come.
        bias_C: None where the layer has none.
        penalty: by which it was found.
    """

    weight_CD: torch.Tensor
    bias_C: torch.Tensor | None
    penalty: float

    def logits(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Return logits, [N, C]."""
        return functional.linear(features_ND.double(), self.weight_CD, self.bias_C)


@dataclass(frozen=True)
class Problem:
    """Features with their labels.

    Attributes:
        features_ND: of any dtype.
        labels: int64 [N], or of several labels a text fp64 [N, C] of 0 and 1.
        num_labels: C.
        has_bias: whether the layer has a bias.
        weights_C: what each class counts; of several labels, where it is right. None: all count the same.
    """

    features_ND: torch.Tensor
    labels: torch.Tensor
    num_labels: int
    has_bias: bool = True
    weights_C: torch.Tensor | None = None

    def part(self, rows: NDArray[np.bool_]) -> "Problem":
        """Return the regression of some of the sequences, bool [N]."""
        chosen = torch.from_numpy(rows)
        return replace(self, features_ND=self.features_ND[chosen], labels=self.labels[chosen])

    def apart(self, unseen: NDArray[np.bool_]) -> tuple["Problem", "Problem"]:
        """Return the regression of all but some of the sequences, and that of those, bool [N]."""
        return self.part(~unseen), self.part(unseen)

    def loss(self, logits_NC: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the targets."""
        if self.labels.dim() == 2:
            return functional.binary_cross_entropy_with_logits(logits_NC, self.labels, pos_weight=self.weights_C)
        return functional.cross_entropy(logits_NC, self.labels, self.weights_C)


Apart = Callable[[NDArray[np.bool_]], tuple[Problem, Problem]]
"""Takes some of the sequences out, bool [N]: the regression of all others, and that of those, in whose features the
others alone have a say."""


def path(problem: Problem, penalties: Sequence[float] = PENALTIES, flat: float = FLAT) -> Iterator[Linear]:
    """Yield the optimum for each penalty.

    Args:
        problem: what is to be fitted.
        penalties: the strongest first.
        flat: the largest entry of the gradient at what counts as the optimum.

    Yields:
        One layer a penalty, of features as they come.
    """
    features = problem.features_ND.double()
    # About their mean the features are far better conditioned; a bias that is not penalized makes up for it exactly.
    mean = features.mean(dim=0) if problem.has_bias else features.new_zeros(features.shape[1])
    features = features - mean
    weight = features.new_zeros(problem.num_labels, features.shape[1], requires_grad=True)
    bias = features.new_zeros(problem.num_labels, requires_grad=problem.has_bias)
    for penalty in penalties:
        _descend(problem, features, weight, bias, penalty, flat)
        found = weight.detach().clone()
        yield Linear(found, bias.detach() - found @ mean if problem.has_bias else None, penalty)


def best(
    problem: Problem,
    loss_of: Callable[[Linear], float],
    penalties: Sequence[float] = PENALTIES,
    flat: float = FLAT,
) -> Linear:
    """Return the optimum under the penalty that serves unseen sequences best.

    Args:
        problem: what is to be fitted.
        loss_of: of a layer on sequences that it has not seen; the smallest wins, the strongest penalty among equals.
        penalties: the strongest first.
        flat: as `path`.

    Returns:
        The layer.
    """
    return min(path(problem, penalties, flat), key=loss_of)


def _descend(
    problem: Problem, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, penalty: float, flat: float
) -> None:
    """Go down to the optimum from where weight and bias stand."""
    moved = [one for one in (weight, bias) if one.requires_grad]
    optimizer = torch.optim.LBFGS(
        moved,
        max_iter=_MOST_STEPS,
        tolerance_grad=flat,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = problem.loss(functional.linear(features, weight, bias)) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
