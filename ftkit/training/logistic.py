"""Fit the head at once: logistic regression on the features of a frozen trunk, in the place of steps.

Dimension letters: N sequences, D features, C classes.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from ftkit.data.arrays import Labels, TokenSplit
from ftkit.data.batching import collate
from ftkit.errors import ConfigError, ModelError
from ftkit.machine.process import first_decides
from ftkit.models.build import set_training, trainable_parameters
from ftkit.models.logistic import FLAT, PENALTIES, Apart, Linear, Problem, best
from ftkit.models.padding import tolerance_of
from ftkit.report.metrics import METRICS
from ftkit.training.results.metrics import figures_of
from ftkit.training.setup import Job

_NUM_FOLDS = 5
"""Of the training split, where there is no validation split to choose the penalty on."""
_NUM_TRIED = 8
"""Sequences whose logits are compared with those of the model."""


def fit_head(job: Job, note: Callable[[str], None]) -> float:
    """Put the exact optimum into the head, under the penalty that serves the validation split best.

    Args:
        job: a run whose trunk was computed once; every rank calls this.
        note: told what was chosen.

    Returns:
        The seconds that it took.

    Raises:
        ModelError: the head is more than one linear layer.
        ConfigError: the labels are numbers.
    """
    begun = time.perf_counter()
    labels = job.data.labels
    if labels is None or labels.kind == "regression":
        raise ConfigError("method.head=logistic is for classes and labels; leave --head out for numbers and for tokens")
    name, module = _head(job)
    problem = problem_of(job.data.train, labels, _weights(job, labels), has_bias=module.bias is not None)
    found = first_decides(job.process, lambda: _best(job, problem, labels))
    state = {f"{name}.weight": found.weight_CD.float()}
    if found.bias_C is not None:
        state[f"{name}.bias"] = found.bias_C.float()
    job.engine.load_trainable_state(state)
    _check(job, found)
    metric = job.config.training.best_metric
    chosen = f"{metric} on validation" if job.data.validation is not None else f"the loss in {_NUM_FOLDS} folds"
    note(
        f"logistic regression: the optimum for {len(job.data.train):,} sequences of {module.in_features} features; "
        f"penalty {found.penalty:.2g}, chosen by {chosen}"
    )
    return time.perf_counter() - begun


def problem_of(
    split: TokenSplit, labels: Labels, weights: torch.Tensor | None = None, *, has_bias: bool = True
) -> Problem:
    """Return the regression of a split whose hidden states are vectors of sequences.

    Args:
        split: with hidden states.
        labels: what its labels are.
        weights: what each class counts, [C].
        has_bias: whether the layer has a bias.
    """
    own = torch.from_numpy(split.labels.astype(np.float64 if labels.kind == "multi" else np.int64))
    return Problem(features_of(split), own, len(labels.names), has_bias, weights)


def features_of(split: TokenSplit) -> torch.Tensor:
    """Return the vectors of a split's sequences, [N, D]."""
    assert split.hidden is not None
    assert split.hidden.is_pooled
    return torch.cat(split.hidden.states(np.arange(len(split))))


def _head(job: Job) -> tuple[str, nn.Linear]:
    """Return the head and its name.

    Raises:
        ModelError: it is more than one linear layer.
    """
    model = job.engine.model
    names = {name.rpartition(".")[0] for name in trainable_parameters(model)}
    module = model.get_submodule(next(iter(names))) if len(names) == 1 else None
    if not isinstance(module, nn.Linear) or job.data.train.hidden is None or not job.data.train.hidden.is_pooled:
        raise ModelError(
            f"method.head=logistic fits one linear layer, and the head of this model is {', '.join(sorted(names))}; "
            "leave --head out to train it step by step"
        )
    return next(iter(names)), module


def _weights(job: Job, labels: Labels) -> torch.Tensor | None:
    """Return what each class counts, [C]; None where all count the same."""
    given = job.config.training.class_weights
    if not isinstance(given, dict):
        return None
    return torch.tensor([float(given[name]) for name in labels.names], dtype=torch.float64)


def _best(job: Job, problem: Problem, labels: Labels) -> Linear:
    validation, metric = job.data.validation, job.config.training.best_metric
    if validation is None:
        return best_in_folds(problem, problem.apart, job.config.training.seed)
    features, unseen = features_of(validation), problem_of(validation, labels)
    sign = METRICS[metric].sign

    def loss_of(layer: Linear) -> float:
        logits = layer.logits(features)
        if metric == "loss":
            return float(unseen.loss(logits))
        return sign * float(figures_of(logits.float().numpy(), validation.labels, labels)[metric])

    return best(problem, loss_of)


def best_in_folds(
    problem: Problem, apart: Apart, seed: int, penalties: Sequence[float] = PENALTIES, flat: float = FLAT
) -> Linear:
    """Return the optimum for all sequences, under the penalty of the smallest loss on those that were left out.

    Args:
        problem: what is to be fitted.
        apart: takes some of its sequences out.
        seed: of the folds.
        penalties: the strongest first.
        flat: as `path`.
    """
    folds = np.random.default_rng(seed).permutation(len(problem.labels)) % _NUM_FOLDS
    losses: dict[float, float] = {}
    for fold in range(_NUM_FOLDS):
        seen, unseen = apart(folds == fold)

        def add(layer: Linear, unseen: Problem = unseen) -> float:
            loss = float(unseen.loss(layer.logits(unseen.features_ND)))
            losses[layer.penalty] = losses.get(layer.penalty, 0.0) + loss
            return loss

        best(seen, add, penalties, flat)
    return best(problem, lambda layer: losses[layer.penalty], penalties, flat)


def _check(job: Job, found: Linear) -> None:
    """Compare the model's own logits with those that were fitted."""
    train, engine = job.data.train, job.engine
    rows = np.arange(min(_NUM_TRIED, len(train)))
    set_training(engine.model, False)
    engine.begin_step(0)
    with torch.no_grad():
        given = engine.logits(collate(train, rows, job.padding, engine.device)).double().cpu()
    set_training(engine.model, True)
    assert train.hidden is not None
    fitted = found.logits(torch.cat(train.hidden.states(rows)))
    missed = float((given - fitted).abs().max() / fitted.abs().max().clamp_min(1e-30))
    if not missed <= max(1e-4, tolerance_of(engine.dtype, 1)):
        raise ModelError(
            f"method.head=logistic fits one linear layer, and this model gives other logits, by {missed:.2g} of the "
            "largest; leave --head out to train its head step by step"
        )
