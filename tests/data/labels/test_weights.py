"""Weights of classes: balanced as scikit-learn does, or as a user says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from ftkit.data.arrays import Labels, TokenSplit
from ftkit.data.labels.weights import class_weights
from ftkit.errors import ConfigError

NAMES = Labels("single", ("ham", "spam", "none"))


def split(labels):
    return TokenSplit(np.zeros(len(labels), np.int32), np.arange(len(labels) + 1), np.asarray(labels))


@given(st.lists(st.integers(0, 1), min_size=1))
def test_balanced_classes_have_the_weights_of_scikit_learn_and_an_absent_one_weighs_one(labels):
    found = class_weights("balanced", split(labels), NAMES)
    present = np.unique(labels)
    wanted = dict(zip(present, compute_class_weight("balanced", classes=present, y=labels), strict=True))
    assert list(found.values()) == pytest.approx([wanted.get(label, 1.0) for label in range(3)])


def test_balanced_labels_of_several_weigh_as_much_where_they_are_as_where_they_are_not():
    matrix = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=np.int8)
    assert class_weights("balanced", split(matrix), Labels("multi", NAMES.names)) == {"ham": 3, "spam": 1, "none": 1}


def test_named_weights_stand_at_their_names_and_the_others_are_one():
    assert class_weights({"spam": 5.0}, split([0, 1]), NAMES) == {"ham": 1, "spam": 5, "none": 1}
    assert class_weights(None, split([0, 1]), NAMES) is None


@pytest.mark.parametrize(
    ("labels", "asked", "words"),
    [
        (NAMES, {"spma": 2.0}, "'spma', which is not a label; did you mean 'spam'"),
        (Labels("regression", ("n",)), "balanced", "numbers to predict"),
        (None, "balanced", "a language model"),
    ],
)
def test_weights_of_what_has_no_such_class_are_refused(labels, asked, words):
    with pytest.raises(ConfigError, match=words):
        class_weights(asked, split([0, 1]), labels)
