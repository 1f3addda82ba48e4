"""The first tokens of sequences, as checks take them."""

import numpy as np

from ftkit.data.arrays import TokenSplit
from ftkit.data.beginnings import beginnings, lengths_to_target

TOKENS = np.arange(9, dtype=np.int32)
OFFSETS = np.array([0, 4, 9])


def test_a_language_models_sequences_are_cut_with_their_targets():
    carries = np.array([False, True, True, True, False, False, True, False, True])
    split = TokenSplit(TOKENS, OFFSETS, carries, segments=np.ones(9, np.int8))
    rows = np.array([1, 0])

    lengths = lengths_to_target(split, rows, 2)
    begun = beginnings(split, rows, lengths)

    assert lengths.tolist() == [5, 3], "up to the second target"
    assert begun.tokens.tolist() == [4, 5, 6, 7, 8, 0, 1, 2]
    assert begun.num_targets.tolist() == [2, 2]
    assert begun.segments.shape == begun.tokens.shape
    assert lengths_to_target(split, rows, 3).tolist() == [5, 4], "all where there are fewer"


def test_a_classifiers_sequences_keep_the_labels_of_their_texts():
    split = TokenSplit(TOKENS, OFFSETS, np.array([7]), windows=np.array([0, 2]))
    begun = beginnings(split, np.array([1]), split.lengths[1:])
    assert begun.tokens.tolist() == [4, 5, 6, 7, 8]
    assert begun.labels.tolist() == [7]
