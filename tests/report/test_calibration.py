"""Calibration, temperature and threshold are what scikit-learn, scipy and trying every value find."""

import numpy as np
import pytest
from scipy import optimize, special
from sklearn import metrics

from ftkit.records.answers import Answers
from ftkit.report.calibration import (
    at_temperature,
    calibration_error,
    fit_temperature,
    questions,
    reliability,
    tune_threshold,
)


def drawn(num=4000, classes=3, sharpness=2.5, seed=0):
    """Return probabilities that are too sure by a factor of `sharpness`, and classes drawn by the honest ones."""
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal((num, classes)) * 1.5
    honest = special.softmax(logits, axis=1)
    true = (honest.cumsum(axis=1) < draw.random((num, 1))).sum(axis=1)
    return special.softmax(logits * sharpness, axis=1), true


def two(shares, true, split):
    texts = tuple(map(str, range(len(true))))
    return Answers(split, 1, "single", ("a", "b"), texts, true, shares.argmax(axis=1), shares, {})


def test_the_temperature_is_the_one_that_scipy_finds_and_that_the_answers_were_drawn_with():
    shares, true = drawn()
    logs = np.log(shares)

    def loss(temperature):
        return -special.log_softmax(logs / temperature, axis=1)[np.arange(len(true)), true].sum()

    wanted = optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    found = fit_temperature(shares, true)
    assert found == pytest.approx(wanted, rel=1e-5)  # scipy stops where the loss no longer changes in fp64
    assert found == pytest.approx(2.5, rel=0.1)  # 4,000 draws
    assert calibration_error(at_temperature(shares, found), true) < 0.3 * calibration_error(shares, true)


def test_a_temperature_stays_finite_where_all_or_nothing_is_right():
    shares = np.array([[0.9, 0.1], [0.0, 1.0]])
    assert fit_temperature(shares, np.array([0, 1])) == pytest.approx(0.01)
    assert fit_temperature(shares, np.array([1, 0])) == pytest.approx(100.0)


def test_the_calibration_error_is_the_mean_gap_of_bins_weighed_by_their_size():
    shares = np.array([[0.9, 0.1], [0.92, 0.08], [0.4, 0.6], [0.35, 0.65]])
    true = np.array([0, 1, 1, 1])
    wanted = (2 * abs(0.91 - 0.5) + abs(0.6 - 1) + abs(0.65 - 1)) / 4
    bins = reliability(shares, true)
    assert sum(one.count for one in bins) == 4
    assert calibration_error(shares, true) == pytest.approx(wanted)


def test_each_label_of_several_is_a_question_of_two_answers():
    labels = np.array([[1, 0], [0, 1]], np.int8)
    shares = np.array([[0.8, 0.3], [0.4, 0.9]])
    answers = Answers("test", 1, "multi", ("a", "b"), ("x", "y"), labels, labels, shares, {})
    asked, true = questions(answers)
    np.testing.assert_allclose(asked, [[0.2, 0.8], [0.7, 0.3], [0.6, 0.4], [0.1, 0.9]])
    assert true.tolist() == [1, 0, 0, 1]


def test_the_threshold_is_the_best_of_all_by_the_macro_f1_on_validation():
    draw = np.random.default_rng(3)
    second = draw.beta(1, 4, 300)
    true = (draw.random(300) < second**0.5).astype(np.int64)
    shares = np.stack([1 - second, second], axis=1)
    validation = two(shares, true, "validation")
    test = two(shares[::-1][:100], true[::-1][:100], "test")
    found = tune_threshold(validation, [test])
    levels = np.concatenate([[0.5], np.unique(second) - 1e-12])
    f1 = [metrics.f1_score(true, second >= level, average="macro", zero_division=0) for level in levels]
    assert found.f1_macro["validation"] == pytest.approx(max(f1))
    answered = test.probabilities[:, 1] >= found.value
    assert found.f1_macro["test"] == pytest.approx(metrics.f1_score(test.labels, answered, average="macro"))
    assert found.accuracy["test"] == pytest.approx(metrics.accuracy_score(test.labels, answered))


def test_a_threshold_is_for_two_classes_alone():
    shares, true = drawn(50)
    answers = Answers("validation", 1, "single", ("a", "b", "c"), ("",) * 50, true, true, shares, {})
    assert tune_threshold(answers, []) is None
