"""JSON and JSONL: values arrive as they were written, or the file is refused with its line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config.tree import DataConfig
from ftkit.data import spill
from ftkit.data.reading import decoding
from ftkit.data.reading import values as reading_values
from ftkit.data.reading.files import read_file
from ftkit.data.reading.values import values_of
from ftkit.errors import DataError

whole = st.integers(-(2**70), 2**70)
scalars = st.none() | st.booleans() | whole | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)
tables = st.lists(st.dictionaries(st.sampled_from("abc"), values, min_size=1), min_size=1, max_size=8)


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file(path, DataConfig())


def rows_of(shard):
    """Return the rows as Python values; a missing key and a null are one."""
    columns = {name: list(values_of(shard.table[name])) for name in shard.table.column_names}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def same(left, right):
    """Compare values and their kinds; whole numbers beside decimals of one column may be decimals, as far as exact."""
    if type(left) is not type(right):
        return {type(left), type(right)} == {int, float} and left == right
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@given(tables, st.sampled_from(["d.jsonl", "d.json"]))
def test_values_of_every_kind_arrive_as_they_were_written(tmp_path_factory, rows, name):
    content = "\n".join(json.dumps(row) for row in rows) if name == "d.jsonl" else json.dumps(rows)
    shard = read(tmp_path_factory.mktemp("json") / name, content)
    written = [{key: value for key, value in row.items() if value is not None} for row in rows]
    assert same(rows_of(shard), written)


def test_an_object_keeps_its_own_keys_and_no_others(tmp_path):
    rows = [{"call": {"city": "Oslo"}}, {"call": {"a": 2, "b": None}}, {"call": None}]
    shard = read(tmp_path / "d.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert list(values_of(shard.table["call"])) == [row["call"] for row in rows]


def test_kinds_that_change_after_many_rows_are_kept_apart(tmp_path):
    rows = [{"x": "7"}] * 10_000 + [{"x": 7}]  # a chunk holds two thousand
    shard = read(tmp_path / "d.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert list(values_of(shard.table["x"]))[-2:] == ["7", 7]


def test_rows_without_any_column_before_the_first_that_has_one_are_rows(tmp_path):
    shard = read(tmp_path / "d.jsonl", "{}\n" * 5_000 + '{"x": "a"}\n{}\n')
    assert shard.table["x"].to_pylist() == [None] * 5_000 + ["a", None]


@pytest.mark.parametrize("least", [2**30, 1], ids=["in memory", "on the disk"])
@pytest.mark.parametrize(
    "kinds",
    [[1, 2.5, 3, None, 4.5, 6], [1, None, 2.5, 2**60, 7], [[], ["a"], [], None, ["b"]], ["a", 1, None, 2.5, {"b": 1}]],
    ids=["numbers", "beyond decimals", "lists", "all kinds"],
)
def test_a_column_whose_kinds_alternate_holds_every_value_as_it_was_written(kinds, least, tmp_path, monkeypatch):
    monkeypatch.setattr(reading_values, "_CHUNK_ROWS", 1)
    monkeypatch.setattr(spill, "LEAST_BYTES", least)
    rows = [{"x": value, **({"y": "b"} if place == 3 else {})} for place, value in enumerate(kinds)]
    shard = read(tmp_path / "d.json", json.dumps(rows))
    assert shard.table.column_names == ["x", "y"]
    assert same(list(values_of(shard.table["x"])), kinds)
    assert shard.table["y"].to_pylist() == [row.get("y") for row in rows]


def test_every_row_knows_its_line(tmp_path):
    lines = read(tmp_path / "d.jsonl", '\n{"x": "a"}\r\n\n{"x": "b"}')
    assert [lines.where(row)[-6:] for row in (0, 1)] == ["line 2", "line 4"]
    array = read(tmp_path / "d.json", '[{"x":\n"a"},\n\n{"x": "b"}, {"x": "c"}]')
    assert array.places.tolist() == [1, 4, 4]


REFUSED = {
    "a key twice": ('{"x": 1}\n{"x": 1, "x": 2}\n', ["line 2", "'x' twice"]),
    "a key twice inside": ('{"x": {"y": 1, "y": 2}}\n', ["line 1", "'y' twice"]),
    "two objects on a line": ('{"x": 1} {"x": 2}\n', ["line 1", "one object a line"]),
    "an object of all": ('{\n"data": [{"x": 1}]\n}', ["line 1", "an array of objects"]),
    "a row that is not an object": ('[{"x": 1},\n["x"]]', ["line 2", "a list", "object of columns"]),
    "an array cut off": ('[{"x": 1},\n{"x": 2}', ["line 2", "',' or ']'"]),
    "something after the array": ('[{"x": 1}]\n[{"x": 2}]', ["goes on after its array"]),
    "a number beyond all": ('{"x": 1}\n{"x": 1e999}', ["line 2", "1e999"]),
    "half a character": ('{"x": "a"}\n{"x": "\\ud83d"}', ["line 2", "'x'", "surrogate"]),
    "a zero byte": (b'{"x": "a"}\n{"x": "\0"}', ["line 2", "zero byte"]),
    "UTF-16": ('{"x": "a"}'.encode("utf-16"), ["UTF-16", "--set data.encoding=utf-16"]),
}


ARRAY = """  [ {"x": "a}{]", "y": {"z": [{}, {"é": "\\"}"}]}},\n
{"x": "\\u00e9,\n"}   ,{},\n{"x": "é}", "y": null}\n,{"y": {"z": {"z": {}}}} ]\n\n"""


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_an_array_is_the_same_in_whatever_parts_its_file_is_read(size, tmp_path, monkeypatch):
    content = ARRAY.replace(',\n"', ',\\n"')  # a text has no line end
    whole = read(tmp_path / "d.json", content)
    monkeypatch.setattr(decoding, "_BLOCK_BYTES", size)
    parts = read(tmp_path / "d.json", content)
    assert (
        rows_of(parts)
        == rows_of(whole)
        == [row if row.get("y") else {"x": row["x"]} if row else {} for row in json.loads(content)]
    )
    assert parts.places.tolist() == whole.places.tolist() == [1, 3, 3, 4, 5]


BROKEN = [
    '[{"x": 1},\n{"x": }]',
    '[{"x": 1}\n{"x": 2}]',
    '[{"x": "}\n',
    '[{"x": {"y": 1}\n',
    '[{"x": 1}]\n}',
    "[1, 2]",
    "[",
]


@pytest.mark.parametrize("content", BROKEN)
def test_what_is_wrong_with_an_array_is_said_alike_in_whatever_parts_its_file_is_read(content, tmp_path, monkeypatch):
    said = []
    for size in (2**20, 1, 4):
        monkeypatch.setattr(decoding, "_BLOCK_BYTES", size)
        with pytest.raises(DataError) as caught:
            read(tmp_path / "d.json", content)
        said.append(str(caught.value))
    assert len(set(said)) == 1


def test_a_byte_that_is_not_utf_8_has_its_place_in_the_line_of_an_array_that_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_BLOCK_BYTES", 8)
    with pytest.raises(DataError, match="line 2, byte 20 of the line"):
        read(tmp_path / "d.json", b'[\n{"x": "a"}, {"x": "b\xff"}]')


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_altered_is_refused_with_its_line(name, tmp_path):
    content, words = REFUSED[name]
    with pytest.raises(DataError) as caught:
        read(tmp_path / "d.json", content)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
