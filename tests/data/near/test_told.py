"""What is told of texts that are nearly the same: counts, rows, examples, severity and cure."""

import numpy as np
import pytest

from ftkit.config.tree import DataConfig
from ftkit.data.findings import Severity
from ftkit.data.prepare import prepare_data
from tests.made_tokenizers import word_piece


def text(seed):
    return " ".join(f"w{word}" for word in np.random.default_rng(seed).integers(0, 500, 40))


def changed(seed):
    return text(seed) + " behind"


@pytest.fixture
def folder(tmp_path):
    """Two splits: 10 training texts, one of them nearly another; of 5 test texts two nearly, one wholly in training."""
    splits = {
        "train": [*map(text, range(9)), changed(0)],
        "test": [changed(1), changed(2), text(3), *map(text, (20, 21))],
    }
    for split, texts in splits.items():
        lines = "".join(f"{one},{number % 2}\n" for number, one in enumerate(texts))
        (tmp_path / f"{split}.csv").write_text("text,label\n" + lines)
    return tmp_path


def report(folder, **settings):
    config = DataConfig(dataset=str(folder), validation_share=0, **settings)
    return prepare_data(config, "sequence-classification", word_piece(), 0, tells_near=True).report


def test_texts_that_two_splits_nearly_share_are_a_warning_with_rows_and_a_cure(folder):
    near = {(one.later, one.earlier): one for one in report(folder).near}
    assert near.keys() == {("train", "train"), ("test", "train")}
    pairs = near["test", "train"].pairs
    assert [(pair.row.split("/")[-1], pair.other.split("/")[-1]) for pair in pairs] == [
        ("test.csv, line 2", "train.csv, line 3"),
        ("test.csv, line 3", "train.csv, line 4"),
    ]
    # 40 pairs of words, and one more.
    assert pairs[0].similarity == pytest.approx(40 / 41, abs=0.001)
    finding = near["test", "train"].finding()
    assert finding.severity is Severity.WARNING
    assert "40.0% of the test texts are nearly those of the training split (2 rows), such as" in finding.text
    assert finding.cure == "leave these rows out of one of the splits (`ftkit data --json` names them all)"


def test_a_text_that_is_equal_is_told_as_shared_alone(folder):
    told = report(folder)
    assert told.shared == {("test", "train"): 1}
    assert len(next(one for one in told.near if one.later == "test").pairs) == 2


def test_within_a_split_it_is_a_note(folder):
    finding = report(folder).near[0].finding()
    assert finding.severity is Severity.NOTE
    assert finding.text.startswith("train: 1 row nearly the same as an earlier one, such as")
    assert finding.text.endswith("(97 % alike)")  # 40 of 41 pairs


def test_an_example_shows_both_texts_from_before_where_they_part(folder):
    (example,) = report(folder).near[0].examples
    assert example.text.startswith("[...] w")
    assert example.text == example.other_text + " behind"


def test_the_similarity_can_be_changed_and_the_search_left_out(folder):
    assert not report(folder, near_duplicate_similarity=0.99).near
    assert not report(folder, near_duplicate_similarity=None).near


def test_rows_that_repeat_a_text_of_their_own_split_are_counted(folder):
    path = folder / "test.csv"
    path.write_text(path.read_text() + f"{text(20)},1\n")
    told = report(folder)
    assert told.repeated == {"test": 1}
    assert "note: test: 1 row has the text of an earlier one" in told.lines()
