"""Two columns with headers in any language: told apart by what they hold, or refused with the flags to name them."""

import json

import pyarrow as pa
import pytest

from ftkit.config.tree import DataConfig
from ftkit.data.inspect import guess_task
from ftkit.data.prepare import prepare_data
from ftkit.data.reading.sources import load_source
from ftkit.data.table import two_columns
from ftkit.errors import DataError

TEXTS = [f"{word} {noun} {number}" for word in ("buena", "mala") for noun in ("idea", "obra") for number in range(6)]
LABELS = [text.split()[0] for text in TEXTS]


def report(tokenizer, path, names, first, second):
    rows = [dict(zip(names, row, strict=True)) for row in zip(first, second, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare_data(DataConfig(dataset=str(path)), "sequence-classification", tokenizer, 0).report


@pytest.mark.parametrize(
    ("names", "first", "second", "roles"),
    [
        (("Reseña", "Opinión"), TEXTS, LABELS, ("Reseña", "Opinión")),
        (("评论", "情感"), TEXTS, [int(label == "mala") for label in LABELS], ("评论", "情感")),
        (("Opinión", "Reseña"), LABELS, TEXTS, ("Reseña", "Opinión")),
        (("label", "Reseña"), LABELS, TEXTS, ("Reseña", "label")),
        (("text", "Opinión"), TEXTS, LABELS, ("text", "Opinión")),
    ],
)
def test_few_values_that_repeat_are_labels_and_many_are_texts(names, first, second, roles, tmp_path, tokenizer):
    found = report(tokenizer, tmp_path / "d.jsonl", names, first, second)
    assert found.columns == {"text": roles[0], "label": roles[1]}
    told = [line for line in found.lines() if "by what they hold" in line]
    assert len(told) == 1
    assert "--label-column" in told[0]


@pytest.mark.parametrize(
    ("names", "first", "second"),
    [
        (("x", "y"), TEXTS, TEXTS),  # two texts
        (("x", "y"), LABELS, LABELS),  # two labels
        (("x", "y"), [str(number) for number in range(len(LABELS))], LABELS),  # identifiers
        (("buena idea", "buena"), TEXTS, LABELS),  # the first row stands where the header should
        (("x", "y"), TEXTS[::8], LABELS[::8]),  # too few rows to tell
    ],
)
def test_a_doubt_is_refused_with_the_flags_to_name_columns(names, first, second, tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"--label-column.*columns: "):
        report(tokenizer, tmp_path / "d.jsonl", names, first, second)


def test_columns_of_0_and_1_are_named_as_labels_that_they_may_be_and_no_language_model_is_guessed(tmp_path, tokenizer):
    path = tmp_path / "d.csv"
    path.write_text(
        "text,toxic,spam\n" + "".join(f"{text},{place % 2},{place % 3 % 2}\n" for place, text in enumerate(TEXTS))
    )
    config = DataConfig(dataset=str(path))
    assert guess_task(config, load_source(config)) == "sequence-classification"
    with pytest.raises(DataError, match=r"--set data\.label_columns='\[toxic, spam\]'"):
        prepare_data(config, "sequence-classification", tokenizer, 0)
    named = config.model_copy(update={"label_columns": ("toxic", "spam")})
    assert prepare_data(named, "sequence-classification", tokenizer, 0).label_names == ("toxic", "spam")
    for wrong in ({"text_column": "nosuch"}, {"label_columns": ("toxic", "nosuch")}):
        with pytest.raises(DataError, match="'nosuch' is not a column") as raised:
            prepare_data(config.model_copy(update=wrong), "sequence-classification", tokenizer, 0)
        assert "which hold 0 and 1" not in str(raised.value)


def test_a_column_of_texts_is_known_for_no_switch_by_its_first_rows(monkeypatch):
    monkeypatch.setattr(two_columns, "pc", None)  # so that the values of the whole column are not asked for
    assert not two_columns._is_switch(pa.chunked_array([[None, "0", "1", "fine"]]))
    monkeypatch.undo()
    late = pa.chunked_array([["0", None, "1"] * 1000, ["fine"]])
    assert not two_columns._is_switch(late)
    assert two_columns._is_switch(late.slice(0, 3000))
