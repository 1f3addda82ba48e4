"""TF-IDF: the terms of some texts, and regressions whose unseen texts have no say in them."""

import numpy as np
import pytest
import torch

from ftkit.training.study.folds import draw_folds, out_of_fold
from ftkit.training.study.words import Terms, WordProblem

LABELS = np.arange(30) % 2
TEXTS = [f"{('bad', 'good')[label]} film of {place % 7} hours" for place, label in enumerate(LABELS)]


def vectors(texts):
    return Terms.of(texts).vectors(texts)


def test_words_and_pairs_of_words_are_weighted_by_how_rare_they_are():
    matrix = vectors(["good film", "good play", "bad film", "bad film bad film"])
    assert matrix.shape == (4, 4)  # good, bad, film, bad film: the others are of a single text
    assert torch.allclose(matrix.norm(dim=1), torch.ones(4))
    good_film, good_play = matrix[0], matrix[1]
    assert (good_film > 0).sum() == 2
    assert (good_play > 0).sum() == 1


def test_a_text_without_a_known_word_is_nothing():
    assert vectors(["a a", "a b", "?"])[2].abs().sum() == 0


def test_words_that_the_training_split_does_not_have_count_for_nothing():
    terms = Terms.of(["good film", "good plot", "bad film"])
    assert set(terms.places) == {"good", "film"}
    assert terms.vectors(["unseen words"]).abs().max() == 0
    assert float(terms.vectors(["good film"]).norm()) == pytest.approx(1.0, rel=1e-6)


def test_the_answer_to_a_text_does_not_depend_on_the_texts_that_are_answered_beside_it():
    folds = draw_folds(LABELS, 3, 0)
    first, *others = np.flatnonzero(folds == 0)
    changed = ["another play of hours" if place in others else text for place, text in enumerate(TEXTS)]
    given = [WordProblem(texts, torch.from_numpy(LABELS), 2) for texts in (TEXTS, changed)]
    answers = [out_of_fold(one.apart, folds, [1e-2]).probabilities_NC[first] for one in given]
    assert answers[0].tolist() == answers[1].tolist()


def test_all_texts_by_some_terms_keep_their_labels():
    problem = WordProblem(TEXTS, torch.from_numpy(LABELS), 2).whole(Terms.of(TEXTS[:4]))
    assert problem.labels.tolist() == LABELS.tolist()
    assert len(problem.features_ND) == len(TEXTS)
