"""Figures of predictions are those of scikit-learn and scipy."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn import metrics

from ftkit.data.arrays import Labels
from ftkit.data.standard import Standard
from ftkit.records.scores import Scores
from ftkit.training.results.metrics import class_figures, figures_of, number_figures, remarks
from tests.helpers import ragged_split

TASK = "sequence-classification"
NAMES = ("a", "b", "c")


def scores(**figures):
    return Scores(loss=1.0, num_samples=9, seconds=0.0, **figures)


@given(arrays(np.int64, (30, 2), elements=st.integers(0, 2)))
def test_figures_of_classes_are_those_of_scikit_learn(answers):
    true, predicted = answers.T
    found = scores(**class_figures(metrics.confusion_matrix(true, predicted, labels=[0, 1, 2]), NAMES))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(true, predicted))
    for average, figure in (("macro", found.f1_macro), ("weighted", found.f1_weighted)):
        assert figure == pytest.approx(metrics.f1_score(true, predicted, average=average, zero_division=0))
    wanted = metrics.precision_recall_fscore_support(true, predicted, labels=[0, 1, 2], zero_division=0)
    per_label = [(one.precision, one.recall, one.f1, one.support) for one in found.per_label]
    np.testing.assert_allclose(per_label, np.array(wanted).T)
    assert found.baseline == pytest.approx(np.bincount(true).max() / len(true))


def test_figures_of_several_labels_are_those_of_scikit_learn():
    split = ragged_split(TASK, num_samples=40, kind="multi")
    logits = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    logits[:, 2] = -1.0  # a label that is never answered
    found, predicted = scores(**figures_of(logits, split.labels, Labels("multi", NAMES))), (logits > 0).astype(int)
    for average, figure in (("macro", found.f1_macro), ("micro", found.f1_micro), ("weighted", found.f1_weighted)):
        assert figure == pytest.approx(metrics.f1_score(split.labels, predicted, average=average, zero_division=0))
    assert found.exact_match == pytest.approx(metrics.accuracy_score(split.labels, predicted))
    wanted = metrics.precision_recall_fscore_support(split.labels, predicted, zero_division=0)
    per_label = [(one.precision, one.recall, one.f1, one.support) for one in found.per_label]
    np.testing.assert_allclose(per_label, np.array(wanted).T)
    assert found.baseline == np.unique(split.labels, axis=0, return_counts=True)[1].max() / 40


numbers = arrays(np.float64, 12, elements=st.integers(-20, 20).map(lambda number: number / 4))


@given(numbers, numbers)
def test_figures_of_numbers_are_those_of_scipy_and_scikit_learn(predicted, true):
    found = scores(**number_figures(predicted, true))
    assert found.mae == pytest.approx(metrics.mean_absolute_error(true, predicted))
    assert found.rmse == pytest.approx(metrics.root_mean_squared_error(true, predicted))
    if min(np.ptp(predicted), np.ptp(true)) == 0:
        assert found.pearson is found.spearman is None
        return
    assert found.pearson == pytest.approx(stats.pearsonr(predicted, true).statistic, abs=1e-12)
    with warnings.catch_warnings():
        assert found.spearman == pytest.approx(stats.spearmanr(predicted, true).statistic, abs=1e-12)


def test_standardised_numbers_are_scored_in_the_units_of_the_data():
    standard = Standard(10.0, 4.0)
    split = ragged_split(TASK, kind="regression")
    outputs = (split.labels + 0.5).astype(np.float32)
    found = scores(**figures_of(outputs[:, None], split.labels, Labels("regression", ("n",), standard)))
    assert found.mae == pytest.approx(2.0)  # half a deviation
    assert found.baseline == pytest.approx(standard.restored(split.labels).std())


def test_one_answer_for_all_and_a_score_no_better_than_that_are_remarked():
    labels = Labels("single", ("ham", "spam"))
    flat = scores(**class_figures(np.array([[8, 0], [1, 0]]), labels.names))
    said = "\n".join(remarks("validation", flat, labels))
    assert "all 9 texts are answered 'ham'" in said
    assert "0.8889 is not above that of always answering 'ham', 0.8889" in said
    good = scores(**class_figures(np.array([[8, 0], [0, 1]]), labels.names))
    assert remarks("validation", good, labels) == []


def test_a_split_of_one_class_alone_is_remarked_however_high_its_score():
    labels = Labels("single", ("ham", "spam"))
    perfect = scores(**class_figures(np.array([[9, 0], [0, 0]]), labels.names))
    assert perfect.accuracy == 1.0
    assert any("not above that of always answering 'ham'" in line for line in remarks("test", perfect, labels))


def test_predictions_that_say_nothing_are_remarked_for_the_other_kinds_too():
    number = scores(**number_figures(np.ones(9), np.arange(9.0)))
    assert remarks("test", number, Labels("regression", ("n",))) == [
        "warning: test: all predictions are the same number"
    ]
    split = ragged_split(TASK, kind="multi")
    silent = scores(**figures_of(-np.ones((24, 3), np.float32), split.labels, Labels("multi", NAMES)))
    assert remarks("test", silent, Labels("multi", NAMES)) == ["warning: test: no text is given any label"]
