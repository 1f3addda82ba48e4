"""Folds keep groups together and classes apart evenly; answers come from regressions that have not seen the text."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ftkit.training.study.folds import as_problem, draw_folds, learning_curve, out_of_fold

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(150, 6))
LABELS = (FEATURES @ RANDOM.normal(size=(6, 3)) + RANDOM.normal(size=(150, 3))).argmax(axis=1)
PROBLEM = as_problem(torch.from_numpy(FEATURES), LABELS, 3)


def test_each_fold_gets_its_share_of_each_class():
    folds = draw_folds(LABELS, 5, 0)
    for label in range(3):
        counts = np.bincount(folds[label == LABELS], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (draw_folds(LABELS, 5, 0) == folds).all()
    assert (draw_folds(LABELS, 5, 1) != folds).any()


def test_a_group_stays_in_one_fold_and_folds_are_of_like_size():
    groups = RANDOM.integers(0, 40, size=150)
    folds = draw_folds(LABELS, 5, 0, groups)
    assert all(len(set(folds[groups == group])) == 1 for group in groups)
    counts = np.bincount(folds)
    assert counts.max() - counts.min() <= np.bincount(groups).max()


def test_answers_are_scikit_learns_of_the_other_folds():
    folds = draw_folds(LABELS, 3, 0)
    found = out_of_fold(PROBLEM.apart, folds, [1e-2])
    for fold in range(3):
        seen = folds != fold
        theirs = LogisticRegression(C=1 / (1e-2 * seen.sum()), tol=1e-10, max_iter=10_000).fit(
            FEATURES[seen], LABELS[seen]
        )
        # Ours stops where the gradient is 1e-6, and the least curvature is the penalty.
        assert np.allclose(found.probabilities_NC[~seen], theirs.predict_proba(FEATURES[~seen]), atol=1e-3)


def test_the_penalty_is_that_of_the_smallest_loss():
    folds = draw_folds(LABELS, 3, 0)
    assert out_of_fold(PROBLEM.apart, folds, [10.0, 1e-2, 1e-9]).penalty == pytest.approx(1e-2)


def test_a_learning_curve_ends_with_all_texts_outside_a_fold():
    folds = draw_folds(LABELS, 3, 0)
    curve = learning_curve(PROBLEM, folds, 1e-2, 0)
    assert [size for size, _ in curve] == [10, 20, 40, 70, 100]
    assert curve[-1][1].mean() > curve[0][1].mean()
    answers = out_of_fold(PROBLEM.apart, folds, [1e-2]).probabilities_NC.argmax(axis=1)
    assert curve[-1][1].tolist() == pytest.approx([(answers == LABELS)[folds == fold].mean() for fold in range(3)])
