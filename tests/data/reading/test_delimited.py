"""CSV and TSV: rows arrive as they were written, or the file is refused with its line; never other rows."""

import bz2
import csv
import gzip
import io
import lzma

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.config.tree import DataConfig
from ftkit.data.reading.files import read_file
from ftkit.errors import DataError

# what readers take for something else: quotes, separators, line ends of many kinds, spaces, escapes, words for nothing
PIECES = [
    *(
        '"',
        "'",
        ",",
        ";",
        "\t",
        "|",
        "\n",
        "\r",
        "\r\n",
        "\\",
        " ",
        "\u2028",
        "\x85",
        "\x0b",
        "\ufeff",
        "#",
        "=",
        "é",
        "€",
    ),
    *('""', '\\"', "NA", "null", "None", "nan", "", "1.0", "007", "1e5", "true", "2020-01-01", "a", "b", "good", "bad"),
]
COMPRESSIONS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
texts = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


@st.composite
def tables(draw):
    """Return a table of texts, its header first."""
    names = draw(st.lists(st.sampled_from(["text", "label", "id", "Reseña"]), min_size=1, max_size=3, unique=True))
    width = len(names)
    return [names, *draw(st.lists(st.lists(texts, min_size=width, max_size=width), min_size=1, max_size=6))]


def written(rows, **dialect):
    """Write rows as Python's csv does, or return None where the dialect cannot."""
    out = io.StringIO(newline="")
    try:
        csv.writer(out, **dialect).writerows(rows)
    except csv.Error:
        return None
    return out.getvalue()


def read(path, content, **settings):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    shard = read_file(path, DataConfig(**settings))
    return [
        shard.table.column_names,
        *map(list, zip(*(column.to_pylist() for column in shard.table.columns), strict=True)),
    ]


def same_or_refused(path, content, rows, **settings):
    try:
        found = read(path, content, **settings)
    except DataError:
        return
    assert found == rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@given(
    tables(),
    st.fixed_dictionaries(
        {
            "delimiter": st.sampled_from(",;\t|"),
            "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
            "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE]),
        }
    ),
    st.sampled_from(["d.csv", "d.tsv"]),
    st.sampled_from(["", "\ufeff", "sep"]),
)
@settings(max_examples=200)
def test_what_python_writes_is_read_as_it_was_or_refused(folder, rows, dialect, name, mark):
    content = written(rows, **dialect)
    if content is not None:
        mark = f"sep={dialect['delimiter']}\r\n" if mark == "sep" else mark
        same_or_refused(folder / name, mark + content, rows)


@given(
    tables(),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]),
    st.booleans(),
)
@settings(max_examples=200)
def test_texts_behind_backslashes_are_read_as_they_were_or_refused(folder, rows, separator, quoting, doubles):
    dialect = {"delimiter": separator, "quoting": quoting, "escapechar": "\\", "doublequote": doubles}
    content = written(rows, **dialect)
    if content is not None:
        same_or_refused(folder / "d.csv", content, rows)
        same_or_refused(folder / "d.csv", content, rows, quotes="backslash")


@given(tables(), st.sampled_from(",;\t|"), st.sampled_from(["utf-8", "cp1252", "latin-1", "UTF16"]))
@settings(max_examples=100)
def test_another_encoding_is_read_as_it_was_or_refused(folder, rows, separator, encoding):
    content = written(rows, delimiter=separator)
    try:
        raw = content.encode(encoding)
    except UnicodeEncodeError:
        return
    same_or_refused(folder / "d.csv", raw, rows)
    same_or_refused(folder / "d.csv", raw, rows, encoding=encoding)
    same_or_refused(folder / "d.csv", raw, rows, encoding="cp1252" if encoding == "utf-8" else "utf-8")


@given(tables(), st.sampled_from(",;\t|"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
@settings(max_examples=100)
def test_what_is_written_as_the_user_states_is_never_refused(folder, rows, separator, quoting):
    plain = [[text.replace("\r", "") for text in row] for row in rows]
    content = written(plain, delimiter=separator, quoting=quoting)
    assert read(folder / "d.csv", content, separator=separator, quotes="doubled") == plain


def test_a_table_that_pandas_wrote_is_read_with_its_index(tmp_path):
    frame = pandas.DataFrame({"text": ['a "b", c', "NA", ""], "label": [1, 0, 1]})
    assert read(tmp_path / "d.csv", frame.to_csv()) == [
        ["", "text", "label"],
        *(["0", 'a "b", c', "1"], ["1", "NA", "0"], ["2", "", "1"]),
    ]


EXCEL = [["Reseña", "Nota", ""], ["así; «sí»", "3,5", ""], ["línea\notra", "4", ""], ['dijo "no"', "", ""]]


@pytest.mark.parametrize("separator", [";", ",", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252", "UTF16"])
def test_what_excel_writes_is_read(separator, encoding, tmp_path):
    content = written(EXCEL, delimiter=separator).encode(encoding)
    found = read(tmp_path / "d.csv", content, encoding=encoding)
    assert found == [row[:2] for row in EXCEL]  # the column without a name is empty


def test_a_line_that_names_the_separator_is_not_a_row(tmp_path):
    assert read(tmp_path / "d.csv", "sep=;\r\ntext\r\na, b\r\nc\r\n") == [["text"], ["a, b"], ["c"]]
    assert read(tmp_path / "d.csv", '"sep=|"\r\n\r\nx|y\r\na|b\r\n') == [["x", "y"], ["a", "b"]]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("text\tlabel\na, b\tx\n", [["text", "label"], ["a, b", "x"]]),
        ("text;label\n1,5;x\n2,5;y\n", [["text", "label"], ["1,5", "x"], ["2,5", "y"]]),
        ("text,label\na;b,x\nc,y\n", [["text", "label"], ["a;b", "x"], ["c", "y"]]),
        ("text\na;b\nc;d\n", [["text"], ["a;b"], ["c;d"]]),
        ('"a, b";label\n"x;y";1\n', [["a, b", "label"], ["x;y", "1"]]),
    ],
)
def test_the_separator_is_the_one_that_header_and_rows_agree_on(content, found, tmp_path):
    assert read(tmp_path / "d.csv", content) == found
    assert read(tmp_path / "d.tsv", content) == found


def test_texts_that_look_like_something_else_stay_texts(tmp_path):
    cells = [
        "NA",
        "null",
        "None",
        "nan",
        "007",
        "1.0",
        "1e5",
        "12345678901234567890",
        "true",
        "2020-01-01",
        "#x",
        " a ",
    ]
    assert read(tmp_path / "d.csv", written([["text", "id"], *([cell, "0"] for cell in cells)]))[1:] == [
        [cell, "0"] for cell in cells
    ]


def test_plain_quotes_are_read_where_they_are_stated_as_such(tmp_path):
    content = 'text\tlabel\n"Splendid, all of it\tgood\n"No" means "no"\tbad\n'
    assert read(tmp_path / "d.tsv", content, quotes="none")[1:] == [
        ['"Splendid, all of it', "good"],
        ['"No" means "no"', "bad"],
    ]


def test_quotes_behind_backslashes_are_read_where_they_are_stated(tmp_path):
    content = '"text","label"\n"he said \\"no\\"","bad"\n"a\\\\b","good"\n'
    assert read(tmp_path / "d.csv", content, quotes="backslash")[1:] == [['he said "no"', "bad"], ["a\\b", "good"]]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("Category\tText\nd\tstring\nclass\t\n\nsport\ta ball\n", [["sport", "a ball"]]),
        (
            "Category\tText\nbad very\\ good\tstring\nclass\tmeta include=True\nvery good\ta ball\n",
            [["very good", "a ball"]],
        ),
        ("Category\tText\nd\tc\nclass\tweight\nsport\t2\n", [["sport", "2"]]),
        (
            "Category\tText\nred shoes\tstring\ncolour=red\tclass\nx\ty\n",
            [["red shoes", "string"], ["colour=red", "class"], ["x", "y"]],
        ),
        ("Category\tText\nd\tstring\nmusic\ta song\n", [["d", "string"], ["music", "a song"]]),
        ("Category\tText\nd\tstring\n", [["d", "string"]]),
    ],
    ids=[
        "types and roles",
        "values and attributes",
        "weights",
        "no values of the column",
        "types alone are a row",
        "a row alone",
    ],
)
def test_the_lines_of_types_and_roles_that_orange_writes_are_not_rows(content, rows, tmp_path):
    assert read(tmp_path / "d.tab", content) == [["Category", "Text"], *rows]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_compressed_file_is_read_or_refused_where_it_is_damaged(suffix, tmp_path):
    content = COMPRESSIONS[suffix](b"text;label\na;b\n" * 5)
    assert read(tmp_path / f"d.csv.{suffix}", content)[:2] == [["text", "label"], ["a", "b"]]
    with pytest.raises(DataError, match="truncated or damaged"):
        read(tmp_path / f"d.csv.{suffix}", content[:-9])


def test_every_row_knows_its_line(tmp_path):
    (tmp_path / "d.csv").write_bytes(b'sep=;\n\ntext;id\n\n"a\nb";1\n\nc;2\n"d";3')
    shard = read_file(tmp_path / "d.csv", DataConfig())
    assert [shard.where(row)[-6:] for row in range(3)] == ["line 5", "line 8", "line 9"]
    assert shard.notes == ("semicolons between columns", "line ends inside quotes: 1")


def test_a_header_in_the_middle_is_told(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\na,1\ntext,label\ntext,2\n")
    assert read_file(tmp_path / "d.csv", DataConfig()).notes == ("rows that repeat the header: 1",)


def test_files_put_end_to_end_are_told_by_the_marks_between_them(tmp_path):
    (tmp_path / "d.csv").write_text("\ufefftext,label\na,1\n\ufefftext,label\n\ufeffb,2\n")
    shard = read_file(tmp_path / "d.csv", DataConfig())
    assert shard.notes == ("rows that repeat the header: 1", "rows that begin with a byte order mark: 2")
    assert shard.table["text"].to_pylist() == ["a", "\ufefftext", "\ufeffb"]


def test_rows_across_blocks_are_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ftkit.data.reading.decoding._BLOCK_BYTES", 7)
    rows = [["text", "id"], *(['é"\n,' * (place % 9), str(place)] for place in range(50))]
    (tmp_path / "d.csv").write_text(written(rows), newline="")
    shard = read_file(tmp_path / "d.csv", DataConfig())
    assert shard.table.to_pylist() == [{"text": text, "id": number} for text, number in rows[1:]]
    assert shard.places[:4].tolist() == [2, 3, 5, 8]


# name: content, words of the message
REFUSED = {
    "an open quote": ('text,label\na,1\n"b,2\nc,3\n', ["line 3", "never closes", "data.quotes=none"]),
    "two open quotes": ('text\tlabel\na\tx\n"b\tx\nc\tx\n"d\tx\n', ["line 3", "in line 5", "data.quotes=none"]),
    "a quote inside quotes": ('text,label\n"a "b" c",1\n', ["line 2", "twice"]),
    "quotes behind backslashes": ('"text","label"\n"a \\"b\\" c","x"\n', ["line 2", "data.quotes=backslash"]),
    "a text behind a closed quote": ('text,label\n"a" b,1\n', ["line 2"]),
    "a space before a quote": ('text, label\na, "b"\n', ["line 2", "space", "data.quotes=doubled"]),
    "rows between two stray quotes": (
        'text,label\n"a,x\nb,y\nc",x\nd,y\ne,x\nf,x\n',
        ["line 2", "looks like a row", "data.quotes=none"],
    ),
    "rows between two stray quotes behind labels": (
        'label\ttext\nx\t"a\ny\tb\nx\tc"\ny\td\nx\te\nx\tf\n',
        ["line 2", "looks like a row"],
    ),
    "rows between two stray quotes beside identifiers": (
        'text,label,id\n"a,x,1\nb,y,2\nc",x,3\nd,y,4\ne,x,5\nf,x,6\n',
        ["line 2", "looks like a row"],
    ),
    "nothing but escapes": ("text,label\nC:\\\\x,1\n", ["line 2", "backslash", "data.quotes=doubled"]),
    "a row too wide": ('text,label\n"a\nb",1\n\nc,d,e\n', ["line 5", "3 field(s)", "header's 2", "commas"]),
    "a row too narrow": ("text;label\na;1\nb\n", ["line 3", "1 field(s)", "semicolons"]),
    "a trailing separator": ("text,label\na,1,\n", ["line 2", "3 field(s)"]),
    "a title above the header": ("My reviews\n\ntext,label\na,1\n", ["line 3", "2 field(s) for the header's 1"]),
    "a return inside a text": ("text,label\na\rb,1\n", ["line 2", "CR", "double quotes"]),
    "a return at the end of a row": ("text,label\na,b\r\nc,d\n", ["line 2", "CR LF", "LF"]),
    "doubled returns": ("text,label\r\r\na,b\r\r\n", ["line 2"]),
    "two separators": ("text,a;b\nc,d;e\n", ["commas or semicolons", "data.separator"]),
    "two columns without a name": ("text,,\na,b,c\n", ["two columns of one name"]),
    "a zero byte": ("text,label\na,1\nb\0,2\n", ["line 3", "zero byte", "take it out"]),
    "bytes of another encoding": ("text,label\ncafé,1\n".encode("cp1252"), ["line 2, byte 3", "data.encoding=cp1252"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_meant_otherwise_is_refused_with_its_line(name, tmp_path):
    content, words = REFUSED[name]
    with pytest.raises(DataError) as caught:
        read(tmp_path / "d.csv", content)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "encoding", "words"),
    [
        ("text\ncafé\n".encode(), "cp1252", ["UTF-8 by all of its bytes", "leave data.encoding out"]),
        ("text\n“a”\n".encode("cp1252"), "latin-1", ["line 2", "0x93", "cp1252"]),
        (b"text\na\x81\n", "cp1252", ["line 2", "0x81", "data.encoding"]),
        ("text\na\n".encode("utf-16"), "cp1252", ["UTF-16", "data.encoding=utf-16"]),
        ("text\na\n".encode("utf-16-le"), "utf-8", ["line 1", "zero byte", "data.encoding=utf-16-le"]),
        ("text\na\n".encode("utf-16-be"), "utf-8", ["line 1", "zero byte", "data.encoding=utf-16-be"]),
        ("text\na\n".encode("utf-16-be"), "utf-16-le", ["other byte order", "data.encoding=utf-16-be"]),
        ("text\na\n".encode("utf-16-be"), "utf-16", ["no byte order mark", "data.encoding=utf-16-be"]),
        ("\ufefftext".encode("utf-16-le"), "utf-16-be", ["other byte order", "data.encoding=utf-16-le"]),
    ],
)
def test_a_file_of_another_encoding_than_stated_is_refused(content, encoding, words, tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path / "d.csv", content, encoding=encoding)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
