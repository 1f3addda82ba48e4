"""Logistic regression finds the optimum that scikit-learn finds."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ftkit.models.logistic import PENALTIES, Problem, best, path

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(120, 8))
TRUE = FEATURES @ RANDOM.normal(size=(8, 3)) + RANDOM.normal(size=(120, 3))
LABELS = TRUE.argmax(axis=1)


def problem(features=FEATURES, labels=LABELS, **more):
    return Problem(torch.from_numpy(features), torch.from_numpy(labels), 3, **more)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_optimum_is_scikit_learns(penalty, has_bias):
    (found,) = path(problem(has_bias=has_bias), [penalty])
    theirs = LogisticRegression(C=1 / (penalty * len(LABELS)), fit_intercept=has_bias, tol=1e-10, max_iter=10_000)
    theirs.fit(FEATURES, LABELS)
    # Both stop where the gradient is about 1e-10, and the least curvature is the penalty.
    assert np.allclose(found.weight_CD, theirs.coef_, atol=1e-4)
    probabilities = found.logits(torch.from_numpy(FEATURES)).softmax(dim=1)
    assert np.allclose(probabilities, theirs.predict_proba(FEATURES), atol=1e-5)


def test_weights_of_classes_are_scikit_learns():
    counts = {0: 1.0, 1: 3.0, 2: 0.5}
    weights = torch.tensor([*counts.values()], dtype=torch.float64)
    (found,) = path(problem(weights_C=weights), [1e-2])
    # Here the loss is divided by the sum of the weights.
    total = sum(counts[label] for label in LABELS)
    theirs = LogisticRegression(C=1 / (1e-2 * total), class_weight=counts, tol=1e-10, max_iter=10_000)
    theirs.fit(FEATURES, LABELS)
    assert np.allclose(found.weight_CD, theirs.coef_, atol=1e-4)


def test_several_labels_are_one_regression_each():
    several = (TRUE > 0).astype(float)
    (found,) = path(problem(labels=several), [1e-2])
    for label in range(3):
        # The mean is over N times C targets.
        theirs = LogisticRegression(C=1 / (3e-2 * len(several)), tol=1e-10, max_iter=10_000)
        theirs.fit(FEATURES, several[:, label])
        assert np.allclose(found.weight_CD[label], theirs.coef_[0], atol=1e-4)


def test_the_penalty_is_that_of_the_smallest_loss_on_what_was_not_seen():
    seen, unseen = problem(FEATURES[:60], LABELS[:60]), problem(FEATURES[60:], LABELS[60:])

    def loss_of(layer):
        return float(unseen.loss(layer.logits(unseen.features_ND)))

    found = best(seen, loss_of)
    assert found.penalty in PENALTIES[1:-1]
    assert loss_of(found) == min(loss_of(layer) for layer in path(seen))
