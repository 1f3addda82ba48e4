"""Splits that are made: properties over many sizes, labels, groups and seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config.tree import DataConfig
from ftkit.data.reading.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    Shares,
    assign_contiguous,
    assign_grouped,
    assign_stratified,
    draw_stratified,
    find_splits,
)
from ftkit.errors import DataError

strata = st.lists(st.integers(0, 4), min_size=1, max_size=200).map(lambda labels: np.array(labels, dtype=np.int64))
shares = st.builds(Shares, st.floats(0.0, 0.45), st.floats(0.0, 0.45))
seeds = st.integers(0, 2**32)


def assigned(assign, *arguments):
    """Return the parts, or None where the shares are too small for the rows."""
    try:
        return assign(*arguments)
    except DataError:
        return None


@given(strata, st.data(), seeds)
def test_a_draw_has_every_stratum_to_within_one_row(labels, data, seed):
    size = data.draw(st.integers(0, len(labels)))
    chosen = draw_stratified(labels, size, np.random.default_rng(seed))
    assert len(chosen) == len(set(chosen.tolist())) == size
    assert (np.diff(chosen) > 0).all()
    for label in np.unique(labels):
        ideal = (labels == label).sum() * size / len(labels)
        assert abs((labels[chosen] == label).sum() - ideal) < 1


@given(strata, shares, seeds)
def test_stratified_parts_are_complete_and_training_keeps_every_label(labels, shares, seed):
    parts = assigned(assign_stratified, labels, shares, seed)
    if parts is None:
        return
    assert len(parts) == len(labels)
    assert set(np.unique(parts)) <= {TRAIN, VALIDATION, TEST}
    for label in np.unique(labels):
        assert TRAIN in parts[labels == label]
    num_lost = 5  # a label's last row may have gone back to training
    for part, share in ((VALIDATION, shares.validation), (TEST, shares.test)):
        assert abs((parts == part).sum() - round(share * len(labels))) <= num_lost


@given(st.integers(30, 80), seeds)
def test_stratified_parts_have_every_labels_share(count, seed):
    labels = np.repeat([0, 1, 2], [count, 2 * count, 3 * count])
    parts = assign_stratified(labels, Shares(0.1, 0.2), seed)
    for label in (0, 1, 2):
        assert abs((parts[labels == label] == TEST).sum() - 0.2 * (label + 1) * count) < 2
        assert abs((parts[labels == label] == VALIDATION).sum() - 0.1 * (label + 1) * count) < 2


@given(strata, shares, seeds)
def test_groups_never_leak_and_training_has_one(values, shares, seed):
    groups = np.unique(values, return_inverse=True)[1]
    parts = assigned(assign_grouped, groups, shares, seed)
    if parts is None:
        return
    assert len(parts) == len(groups)
    for group in np.unique(groups):
        assert len(np.unique(parts[groups == group])) == 1
    assert TRAIN in parts
    assert shares.test == 0 or TEST in parts
    assert shares.validation == 0 or VALIDATION in parts


@given(st.lists(st.integers(0, 59), min_size=100, max_size=300), seeds)
def test_small_groups_fill_their_splits(values, seed):
    groups = np.array([*range(60), *values])
    parts = assign_grouped(groups, Shares(0.2, 0.2), seed)
    largest = np.bincount(groups).max()
    for part in (VALIDATION, TEST):
        size = (parts == part).sum()
        assert round(0.2 * len(groups)) - largest < size <= max(round(0.2 * len(groups)), largest)


@given(strata, shares, seeds)
def test_parts_depend_on_the_seed_alone(labels, shares, seed):
    groups = np.unique(labels, return_inverse=True)[1]
    for assign, values in ((assign_stratified, labels), (assign_grouped, groups)):
        first, again = assigned(assign, values, shares, seed), assigned(assign, values, shares, seed)
        assert (first is None and again is None) or (first == again).all()


def test_another_seed_gives_other_parts():
    labels = np.zeros(200, dtype=np.int64)
    first, other = (assign_stratified(labels, Shares(0.1, 0.1), seed) for seed in (0, 1))
    assert (first != other).any()


@given(st.integers(1, 300), shares)
def test_a_text_is_split_into_whole_pieces(num_rows, shares):
    parts = assigned(assign_contiguous, num_rows, shares)
    if parts is None:
        return
    assert (np.diff(parts) >= 0).all()  # training, validation, test
    assert (parts == TEST).sum() == round(shares.test * num_rows)
    assert TRAIN in parts


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train"], {"train": "train"}),
        (["train", "dev", "test"], {"train": "train", "validation": "dev", "test": "test"}),
        (["training", "valid"], {"train": "training", "validation": "valid"}),
        (
            ["train", "validation_matched", "test"],
            {"train": "train", "validation": "validation_matched", "test": "test"},
        ),
        (["train", "unsupervised", "test"], {"train": "train", "test": "test"}),
    ],
)
def test_splits_are_found_by_their_usual_names(names, found):
    assert find_splits(DataConfig(), names) == found


def test_a_split_that_trains_is_not_found_again_to_score():
    assert find_splits(DataConfig(train_split="validation"), ["train", "validation"]) == {"train": "validation"}
    with pytest.raises(DataError, match="in use already"):
        find_splits(DataConfig(test_split="train"), ["train", "validation"])


def test_several_validation_splits_must_be_told_apart():
    with pytest.raises(DataError, match=r"validation_matched, validation_mismatched.*data\.validation_split"):
        find_splits(DataConfig(), ["train", "validation_matched", "validation_mismatched"])
