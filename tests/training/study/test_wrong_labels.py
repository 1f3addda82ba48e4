"""Labels that were flipped are found."""

import numpy as np
import torch

from ftkit.training.study.folds import as_problem, draw_folds, out_of_fold
from ftkit.training.study.wrong_labels import find_wrong


def test_an_answer_above_its_class_threshold_that_is_not_the_label_is_suspected():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.15, 0.85], [0.45, 0.55]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # Thresholds: the mean of 0.9, 0.8, 0.1 is 0.6, that of 0.7, 0.85, 0.55 is 0.7.
    found = find_wrong(probabilities, labels)
    assert found.places.tolist() == [2]
    assert found.suggested.tolist() == [1]
    assert np.allclose(found.margins_N, [0.8, 0.6, -0.8, 0.4, 0.7, 0.1])


def test_planted_errors_come_first():
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    features = random.normal(size=(400, 5)) + 6 * labels[:, None]
    flipped = random.choice(400, 20, replace=False)
    given = labels.copy()
    given[flipped] = 1 - given[flipped]
    problem = as_problem(torch.from_numpy(features), given, 2)
    found = find_wrong(out_of_fold(problem.apart, draw_folds(given, 5, 0)).probabilities_NC, given)
    assert set(found.places[:20]) == set(flipped)
    assert (found.suggested[:20] == labels[found.places[:20]]).all()
