"""Excel workbooks: cells arrive as they are stored, or the file is refused with its row."""

import datetime
import re
import sys
import zipfile

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.config.tree import DataConfig
from ftkit.data.reading.files import read_file
from ftkit.errors import DataError, DependencyError

PIECES = [
    "NA",
    "null",
    "007",
    "1.0",
    "1e5",
    "_",
    "x000D",
    "_x005F",
    "\n",
    " ",
    ",",
    '"',
    "é",
    "😀",
    "\u2028",
    "TRUE",
    "a",
]
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)


def save(path, *rows, **sheets):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for name, others in sheets.items():
        sheet = book.create_sheet(name)
        for row in others:
            sheet.append(row)
    book.save(path)
    return path


def read(path, **settings):
    return read_file(path, DataConfig(dataset=str(path), **settings))


def refusal(path, **settings):
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
@settings(max_examples=50)
def test_texts_are_read_as_they_were_written(tmp_path_factory, rows):
    escaped = [[re.sub("_(?=x[0-9A-Fa-f]{4}_)", "_x005F_", text) for text in row] for row in rows]  # as Excel does
    path = save(tmp_path_factory.mktemp("excel") / "d.xlsx", ["text", "label"], *escaped)
    assert [tuple(row.values()) for row in read(path).table.to_pylist()] == rows


def test_every_kind_of_cell_is_a_value_of_its_kind_and_empty_rows_are_left_out(tmp_path):
    day = datetime.datetime(2020, 1, 2)
    path = save(tmp_path / "d.xlsx", [], ["text", "n", "x", "b", "day"], [], ["a", 1, 1.5, True, day], [], ["b"])
    shard = read(path)
    assert shard.table.to_pylist() == [
        {"text": "a", "n": 1, "x": 1.5, "b": True, "day": day},
        {"text": "b", "n": None, "x": None, "b": None, "day": None},
    ]
    assert [shard.where(row)[-5:] for row in (0, 1)] == ["row 4", "row 6"]


def test_a_return_is_read_as_one(tmp_path):
    assert read(save(tmp_path / "d.xlsx", ["text"], ["a_x000D_b"])).table["text"].to_pylist() == ["a\rb"]


def test_a_cell_without_a_header_is_known_by_its_letter(tmp_path):
    path = save(tmp_path / "d.xlsx", ["text", None, "label"], ["a", "b", "c", "d"])
    assert read(path).table.to_pylist() == [{"text": "a", "label": "c", "B": "b", "D": "d"}]


def write_quotes(path, quote):
    """Write a workbook's sheets again with another quote around attributes, as XML allows."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(b'"', quote.encode()) if "worksheets/sheet" in name else part)


@pytest.mark.parametrize("quote", ['"', "'"])
def test_the_value_of_a_merged_cell_is_that_of_each_of_its_rows_and_is_told(tmp_path, monkeypatch, quote):
    monkeypatch.setattr("ftkit.data.reading.sheet_marks._PART", 7)  # elements lie across the ends of what is read
    monkeypatch.setattr("ftkit.data.reading.sheet_marks._LONGEST", 200)
    path = save(tmp_path / "t.xlsx", ["label", "note", "text"], *[[None, None, text] for text in "abcdef"], [])
    book = openpyxl.load_workbook(path)
    sheet = book.active
    for cell, value in (("A2", "x"), ("A5", "y"), ("B3", "n"), ("B4", "m"), ("A8", "of nothing")):
        sheet[cell] = value
    for cells in ("A2:A4", "A5:A6", "B3:C3", "A8:A9"):
        sheet.merge_cells(cells)
    for number in (1, 5, 6, 12):  # the header, two rows that are read, and one that holds nothing
        sheet.row_dimensions[number].hidden = True
    book.save(path)
    write_quotes(path, quote)
    shard = read(path)
    rows = shard.table.to_pylist()
    assert [row["label"] for row in rows] == ["x", "x", "x", "y", "y", None, "of nothing"]
    assert [row["note"] for row in rows] == [None, "n", "m", None, None, None, None]
    assert shard.notes == (
        "3 cells have the value of the merged cell that they are part of", "2 hidden rows are read too"
    )  # fmt: skip


def test_a_sheet_is_read_where_it_is_the_only_one_or_named(tmp_path):
    path = save(tmp_path / "d.xlsx", ["text"], ["a"], Notes=[["x"], ["b"]])
    assert "Sheet, Notes" in refusal(path)
    assert "data.subset" in refusal(path)
    assert read(path, subset="Notes").table.to_pylist() == [{"x": "b"}]
    assert "has no sheet 'Note'" in refusal(path, subset="Note")
    book = openpyxl.load_workbook(path)
    book["Notes"].sheet_state = "hidden"
    book.save(path)
    assert read(path).table.to_pylist() == [{"text": "a"}]
    assert read(path).notes == ("sheet 'Sheet' of 2",)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["text"], ["=A1"]], ["row 2", "formula without a stored result", "CSV"]),
        ([["text"], ["a"], ["#N/A"]], ["row 3", "#N/A"]),
        ([["text"], ["a"], [datetime.date(2020, 1, 2)]], ["row 3", "'text'", "dates"]),
        ([["text", "text"], ["a", "b"]], ["two columns of one name"]),
        ([["text"]], ["no rows"]),
        ([], ["no visible sheet"]),
    ],
)
def test_what_would_be_altered_is_refused_with_its_row(rows, words, tmp_path):
    said = refusal(save(tmp_path / "d.xlsx", *rows))
    assert [word for word in words if word not in said] == [], said


def test_a_damaged_workbook_is_refused(tmp_path):
    path = save(tmp_path / "d.xlsx", ["text"], ["a"])
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a whole Excel workbook" in refusal(path)


def test_without_openpyxl_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path / "d.xlsx", ["text"], ["a"])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DependencyError, match=r"ftkit\[excel\].*CSV"):
        read(path)
