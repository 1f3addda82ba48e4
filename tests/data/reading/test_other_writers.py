"""Tables that pandas and Excel wrote, in the ways that they write: the same rows are read, or the file is refused."""

import csv

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.errors import DataError
from tests.data.reading.test_delimited import COMPRESSIONS, read, texts, written

NAMES = ["text", "label", "id", "Rese\u00f1a"]
CODES = ["utf-8", "utf-8-sig", "cp1252", "latin-1", "utf-16"]
CELLS = ["a", "B", " ", '"', ";", ",", "\t", "\n", "1,5", "3.5", "007", "1E+05", "#N/A", "\u20ac", "\u00e9", "="]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("other-writers")


@st.composite
def frames(draw, cells):
    """Return the names of columns and rows of cells."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    row = st.lists(cells, min_size=len(names), max_size=len(names))
    return names, draw(st.lists(row, min_size=1, max_size=6))


def assert_same_or_refused(path, content, rows, **stated):
    """Read what somebody wrote; where the user states how, nothing is refused but what no statement tells apart."""
    try:
        found, refusal = read(path, content, **stated), ""
    except DataError as error:
        found, refusal = None, str(error)
    assert found == rows or refusal
    assert "\n" not in refusal
    if refusal and "quotes" in stated:
        assert any(words in refusal for words in ("carriage return", "of one name", "byte order mark"))


@pytest.mark.filterwarnings("ignore:.*will not write the byte order mark")
@given(
    frames(texts | st.none()),
    st.fixed_dictionaries(
        {
            "sep": st.sampled_from(",;\t|"),
            "index": st.booleans(),
            "na_rep": st.sampled_from(["", "NA", "NULL"]),
            "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
            "lineterminator": st.sampled_from(["\n", "\r\n"]),
        }
    ),
    st.sampled_from(CODES),
    st.sampled_from(["", ".gz", ".xz"]),
)
@settings(max_examples=100)
def test_what_pandas_writes_is_read_as_it_was_or_refused(folder, frame, dialect, code, packed):
    (names, rows), path = frame, folder / f"d.csv{packed}"
    try:
        pandas.DataFrame(rows, columns=names, dtype=object).to_csv(path, encoding=code, **dialect)
    except UnicodeEncodeError:
        return
    content, index = path.read_bytes(), dialect["index"]
    said = [[dialect["na_rep"] if cell is None else cell for cell in row] for row in rows]
    said = [[""] * index + names, *([str(place)] * index + row for place, row in enumerate(said))]
    for stated in ({}, {"encoding": code}, {"encoding": code, "separator": dialect["sep"], "quotes": "doubled"}):
        assert_same_or_refused(path, content, said, **stated)


@given(
    frames(st.lists(st.sampled_from(CELLS), max_size=4).map("".join)),
    st.sampled_from(";,\t"),
    st.sampled_from(["utf-8-sig", "cp1252", "utf-16"]),
    st.integers(0, 2),
    st.booleans(),
)
@settings(max_examples=100)
def test_what_excel_saves_is_read_as_it_was_or_refused(folder, frame, separator, code, num_empty, is_named):
    """CR LF between rows, columns without a name where cells were once filled, and maybe a line `sep=;`."""
    names, rows = frame
    wide = [[*row, *[""] * num_empty] for row in (names, *rows)]
    first = f"sep={separator}\r\n" * is_named
    raw = (first + written(wide, delimiter=separator, lineterminator="\r\n")).encode(code)
    for stated in ({}, {"encoding": code}, {"encoding": code, "separator": separator, "quotes": "doubled"}):
        assert_same_or_refused(folder / "d.csv", raw, [names, *rows], **stated)


def test_the_compressions_that_are_read_are_those_that_pandas_writes(folder):
    for suffix in COMPRESSIONS:
        path = folder / f"d.csv.{suffix}"
        pandas.DataFrame({"text": ["a"], "label": ["b"]}).to_csv(path, index=False)
        assert read(path, path.read_bytes())[1:] == [["a", "b"]]
