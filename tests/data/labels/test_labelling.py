"""Labels of three kinds, in every way that they are written: one class, several labels, a number."""

import csv
import json
import re

import datasets
import numpy as np
import pytest

from ftkit.config.tree import DataConfig
from ftkit.data.labels.checks import contradictions
from ftkit.data.prepare import prepare_data
from ftkit.data.standard import Standard
from ftkit.errors import DataError

TASK = "sequence-classification"
WHOLE = {"validation_share": 0.0, "test_share": 0.0}


def jsonl(path, labels, column="label"):
    rows = ({"text": f"film {number}", column: label} for number, label in enumerate(labels))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path, **columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *columns])
        writer.writerows([f"film {row}", *values] for row, values in enumerate(zip(*columns.values(), strict=True)))
    return path


def prepare(path, tokenizer, model=None, **settings):
    return prepare_data(DataConfig(dataset=str(path), **(WHOLE | settings)), TASK, tokenizer, 0, model)


SETS = [["good"], ["good", "plot"], [], ["bad"], ["plot", "bad"]]
MATRIX = [[0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 1]]


def written(way, path):
    """Write the five sets of labels in a way; return the file and the settings that reading it needs."""
    names = ("bad", "good", "plot")
    lists = {
        "lists of words": (SETS, {}),
        "lists of numbers": ([[names.index(one) for one in labels] for labels in SETS], {}),
        "lists of 0 and 1": (MATRIX, {"label_names": names}),
        "lists of 0.0 and 1.0": ([[float(mark) for mark in row] for row in MATRIX], {"label_names": names}),
        "lists of booleans": ([[mark == 1 for mark in row] for row in MATRIX], {"label_names": names}),
    }
    texts = {
        "texts with a separator": (
            ["good", "good; plot", "", "bad", "plot;bad"],
            {"label_separator": ";", "unlabelled": "no_label"},
        ),
        "lists as pandas writes them": (map(str, SETS), {"label_kind": "multi"}),
        "lists as JSON in a CSV": (map(json.dumps, SETS), {"label_kind": "multi"}),
    }
    if way in lists:
        return jsonl(path / "d.jsonl", lists[way][0], "labels"), lists[way][1]
    if way in texts:
        return table(path / "d.csv", label=texts[way][0]), texts[way][1]
    mark = bool if way == "columns of True and False" else int
    columns = {name: [mark(row[place]) for row in MATRIX] for place, name in enumerate(names)}
    return table(path / "d.csv", **columns), {"label_columns": names}


WAYS = (
    *("lists of words", "lists of numbers", "lists of 0 and 1", "lists of 0.0 and 1.0", "lists of booleans"),
    *("texts with a separator", "lists as pandas writes them", "lists as JSON in a CSV", "columns of 0 and 1"),
    "columns of True and False",
)


@pytest.mark.parametrize("way", WAYS)
def test_several_labels_are_the_same_however_they_are_written(way, tmp_path, tokenizer):
    path, settings = written(way, tmp_path)
    data = prepare(path, tokenizer, **settings)
    assert data.label_kind == "multi"
    assert data.label_names == (("0", "1", "2") if way == "lists of numbers" else ("bad", "good", "plot"))
    assert data.train.labels.tolist() == MATRIX
    assert data.train.labels.dtype == np.int8
    assert (data.train.num_targets == 3).all()
    assert data.report.label_counts["train"] == (2, 2, 2)
    assert "any of 3 labels" in data.report.lines()[0]


def test_a_saved_dataset_names_the_numbers_in_its_lists(tmp_path, tokenizer):
    names = datasets.ClassLabel(names=["zeta", "alpha"])
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.Sequence(names)})
    rows = {"text": ["film a", "film b", "film c"], "labels": [[0], [0, 1], []]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "d")
    data = prepare(tmp_path / "d", tokenizer)
    assert data.label_names == ("zeta", "alpha")
    assert data.train.labels.tolist() == [[1, 0], [1, 1], [0, 0]]


def test_several_labels_take_the_order_of_a_model_that_has_a_head(tmp_path, tokenizer):
    data = prepare(jsonl(tmp_path / "d.jsonl", SETS), tokenizer, model=("plot", "good", "bad"))
    assert data.train.labels.tolist() == [row[::-1] for row in MATRIX]


@pytest.mark.parametrize(
    ("labels", "kind", "reason"),
    [
        (["good", "bad", "good"], "single", "words"),
        ([1, 2, 1], "single", "whole numbers; --set data.label_kind=regression"),
        ([1.0, 2.0, 1.0], "single", "whole numbers"),
        ([True, False, True], "single", "words"),
        ([1.5, 2.0, 4.25], "regression", "numbers with decimals"),
        (["1.5", "-2", "3e-1"], "regression", "numbers with decimals"),
    ],
)
def test_the_kind_is_found_by_what_the_column_holds_and_the_report_says_it(labels, kind, reason, tmp_path, tokenizer):
    report = prepare(jsonl(tmp_path / "d.jsonl", labels), tokenizer).report
    assert report.label_kind == kind
    assert reason in report.lines()[0]


@pytest.mark.parametrize("labels", [[3, 1, 2], ["3", "1.0", " 2 "], [3.0, 1.0, 2.0]])
def test_whole_numbers_are_predicted_as_numbers_where_the_configuration_says_so(labels, tmp_path, tokenizer):
    data = prepare(jsonl(tmp_path / "d.jsonl", labels, "stars"), tokenizer, label_kind="regression")
    assert data.train.labels.tolist() == [3.0, 1.0, 2.0]
    assert data.label_names == ("stars",)


def test_decimal_commas_are_points_where_numbers_are_asked_for_and_no_thousands(tmp_path, tokenizer):
    path = table(tmp_path / "d.csv", label=["1,5", "2", "-0,25"])
    assert prepare(path, tokenizer, label_kind="regression").train.labels.tolist() == [1.5, 2.0, -0.25]
    for labels in (["1,500", "2,250"], ["1,5", "2.5"]):
        with pytest.raises(DataError, match=r"line 2 has '1,5.*not a finite number"):
            prepare(table(tmp_path / "d.csv", label=labels), tokenizer, label_kind="regression")


def test_a_column_of_scores_is_found_where_there_are_no_labels(tmp_path, tokenizer):
    assert prepare(jsonl(tmp_path / "d.jsonl", [1.5, 2.5], "score"), tokenizer).label_names == ("score",)


def test_numbers_are_standardised_by_the_training_split_and_remembered(tmp_path, tokenizer):
    values = [1.5, 2.5, 7.5, 0.5]
    path = tmp_path / "d"
    path.mkdir()
    jsonl(path / "train.jsonl", values)
    jsonl(path / "validation.jsonl", [4.5, 4.75])
    data = prepare(path, tokenizer, standardize_targets=True)
    assert data.labels.standard == Standard(3.0, np.std(values))
    np.testing.assert_allclose(data.train.labels.std(), 1.0)
    np.testing.assert_allclose(data.labels.standard.restored(data.validation.labels), [4.5, 4.75])
    assert "from 0.5 to 7.5, mean 3" in "\n".join(data.report.lines())


def test_numbers_are_split_from_all_over_their_range(tmp_path, tokenizer):
    numbers = [n + 0.5 for n in range(100)]
    data = prepare(jsonl(tmp_path / "d.jsonl", numbers), tokenizer, validation_share=0.1, test_share=0.1)
    for split in (data.validation, data.test):
        assert len(split) == 10
        assert (np.diff(np.sort(split.labels)) < 25).all()
        assert np.ptp(split.labels) > 70


@pytest.mark.parametrize(
    "labels", [["a", None, "b"], ["a", "", "b"], [1, -1, 0], [1.5, None, 2.5], [["a"], None, ["b"]]]
)
def test_rows_without_a_label_are_left_out_and_counted_on_request(labels, tmp_path, tokenizer):
    path = jsonl(tmp_path / "d.jsonl", labels)
    with pytest.raises(DataError, match=r"line 2 .* no label .*data\.unlabelled=drop"):
        prepare(path, tokenizer)
    data = prepare(path, tokenizer, unlabelled="drop")
    assert len(data.train) == 2
    assert data.report.dropped_unlabelled == 1
    assert "left out: 1 without a label" in data.report.lines()


def test_a_number_to_predict_may_be_minus_one_unless_a_whole_test_split_is(tmp_path, tokenizer):
    jsonl(tmp_path / "train.jsonl", [-1.0, 0.5, 1.0])
    jsonl(tmp_path / "test.jsonl", [-1.0, -1.0])
    assert prepare(tmp_path, tokenizer).test.labels.tolist() == [-1.0, -1.0]  # training has it too
    jsonl(tmp_path / "train.jsonl", [0.0, 0.5, 1.0])
    data = prepare(tmp_path, tokenizer)
    assert data.test is None
    assert data.report.dropped_unlabelled == 2


def test_training_keeps_every_label_of_several_and_every_split_its_share(tmp_path, tokenizer):
    sets = [["common", *(["half"] if n % 2 else []), *(["rare"] if n == 77 else [])] for n in range(100)]
    for seed in range(5):
        config = DataConfig(dataset=str(jsonl(tmp_path / "d.jsonl", sets)), validation_share=0.2, test_share=0.2)
        data = prepare_data(config, TASK, tokenizer, seed)
        assert data.report.label_counts["train"][2] == 1
        assert data.validation.labels.sum(axis=0)[1] == pytest.approx(10, abs=1)


def test_texts_with_several_labels_are_counted_with_two_of_their_rows(tmp_path, tokenizer):
    rows = [("same", "a"), ("x", "b"), ("same", "b"), ("same", "a"), ("y", "a")]
    (tmp_path / "d.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    said = "\n".join(prepare(tmp_path / "d.csv", tokenizer).report.lines())
    assert re.search(r"more than one label: 1, in 3 rows, such as \S+d\.csv, line 2 and \S+d\.csv, line 4", said)


def test_a_text_with_another_label_in_another_split_is_told_with_its_row_in_each():
    keys = {"train": np.array([7, 5, 9], np.uint64), "test": np.array([3, 5], np.uint64)}
    labels = {"train": np.array([0, 1, 0]), "test": np.array([1, 0])}
    (finding,) = contradictions(keys, labels, lambda split, row: f"{split} row {row}")
    assert finding.text.endswith("label: 1, in 2 rows, such as train row 1 and test row 1")


def test_labels_that_differ_in_spelling_alone_are_warned_of_or_read_as_one_and_said(tmp_path, tokenizer):
    labels = ["Good", "GOOD", "good ", "good", "bad"] * 12
    said = "\n".join(prepare(jsonl(tmp_path / "d.jsonl", labels), tokenizer).report.lines())
    assert "the labels 'GOOD', 'Good', 'good' differ in spelling alone and train as 3 classes" in said
    assert "label 'good' is written in 2 ways, read as one: 'good', 'good '" in said


def test_labels_with_few_rows_or_none_in_a_split_are_named(tmp_path, tokenizer):
    jsonl(tmp_path / "train.jsonl", ["a"] * 12 + ["b"] * 12 + ["c"] * 3)
    jsonl(tmp_path / "validation.jsonl", ["a", "b"])
    jsonl(tmp_path / "test.jsonl", ["a", "c"])
    said = "\n".join(prepare(tmp_path, tokenizer).report.lines())
    assert "fewer than 10 training rows: c 3" in said
    assert "no validation row has the label 'c'" in said
    assert "no test row has the label 'b'" in said


def test_texts_that_any_two_splits_share_are_counted(tmp_path, tokenizer):
    for split, texts in {"train": "abcd", "validation": "abxy", "test": "axpq"}.items():
        lines = "".join(f"{text},{number % 2}\n" for number, text in enumerate(texts))
        (tmp_path / f"{split}.csv").write_text("text,label\n" + lines)
    report = prepare(tmp_path, tokenizer).report
    assert report.shared == {("validation", "train"): 2, ("test", "train"): 1, ("test", "validation"): 2}
    said = "\n".join(report.lines())
    assert "50.0% of the validation texts are in the training split too (2 rows)" in said
    assert "50.0% of the test texts are in the validation split too (2 rows)" in said


def test_joined_labels_without_a_separator_are_warned_of(tmp_path, tokenizer):
    report = prepare(table(tmp_path / "d.csv", label=["a", "b", "a,b", "b,c", "c"]), tokenizer).report
    assert report.label_kind == "single"
    assert any("'a,b' look like several" in line and "label_separator=','" in line for line in report.lines())
