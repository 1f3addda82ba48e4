"""A schema belongs to the file that has it: class names, types and columns are reconciled by name, or refused."""

from decimal import Decimal

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.config.tree import DataConfig
from ftkit.data.reading.files import read_file
from ftkit.data.reading.shards import Shard, Split
from ftkit.data.table.columns import Columns
from ftkit.data.table.fields import gather
from ftkit.data.table.rows import select_rows, where
from ftkit.errors import DataError


def write(path, columns, **classes):
    """Write Parquet as `datasets` does, with class names where given."""
    kinds = {name: datasets.ClassLabel(names=names) for name, names in classes.items()}
    features = datasets.Dataset.from_dict(columns).features | kinds
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
    return read_file(path, DataConfig())


def split(*shards):
    return Split("train", shards)


def table(name, **columns):
    return Shard(name, pa.table(columns))


STORED = {
    "text": lambda texts: pa.array(texts, pa.string()),
    "large text": lambda texts: pa.array(texts, pa.large_string()),
    "views": lambda texts: pa.array(texts, pa.string_view()),
    "dictionaries": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
    "chunks": lambda texts: pa.chunked_array([texts[:1], texts[1:]], pa.string()),
}
columns = st.lists(st.none() | st.text() | st.sampled_from(["NA", "null", "nan", "", "007"]), min_size=1, max_size=6)


@given(columns, st.sampled_from(list(STORED)), st.sampled_from(["d.parquet", "d.arrow", "stream.arrow"]))
@settings(max_examples=60)
def test_texts_that_arrow_stores_are_read_as_they_were(tmp_path_factory, texts, stored, name):
    path = tmp_path_factory.mktemp("arrow") / name
    whole = pa.table({"text": STORED[stored](texts)})
    if name == "d.parquet":
        pyarrow.parquet.write_table(whole, path)
    else:
        writer = pa.ipc.new_file if name == "d.arrow" else pa.ipc.new_stream
        with writer(str(path), whole.schema) as file:
            file.write_table(whole)
    assert gather(split(read_file(path, DataConfig())), "text").to_pylist() == texts


def test_each_file_names_its_classes_by_its_own_numbers(tmp_path):
    first = write(tmp_path / "a.parquet", {"label": [0, 1, -1]}, label=["bad", "good"])
    second = write(tmp_path / "b.parquet", {"label": [0, 1]}, label=["good", "bad"])
    both = split(first, second)
    assert gather(both, "label").to_pylist() == ["bad", "good", None, "good", "bad"]
    assert both.classes("label") == ("bad", "good")


def test_lists_of_classes_and_classes_inside_objects_are_named_too(tmp_path):
    features = datasets.Features(
        {
            "several": datasets.List(datasets.ClassLabel(names=["x", "y"])),
            "meta": {"label": datasets.ClassLabel(names=["zeta", "alpha"])},
        }
    )
    rows = {"several": [[1, 0], []], "meta": [{"label": 1}, {"label": 0}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    both = split(read_file(tmp_path / "d.parquet", DataConfig()))
    assert gather(both, "several").to_pylist() == [["y", "x"], []]
    assert gather(both, "meta.label").to_pylist() == ["alpha", "zeta"]
    assert both.classes("meta.label") == ("zeta", "alpha")


def test_a_class_number_without_a_name_is_refused(tmp_path):
    path = tmp_path / "d.parquet"
    write(path, {"label": [0, 1]}, label=["bad", "good"])
    schema = pyarrow.parquet.read_schema(path)
    pyarrow.parquet.write_table(pa.table({"label": [0, 7]}).replace_schema_metadata(schema.metadata), path)
    with pytest.raises(DataError, match=r"d\.parquet.*class 7.*2 \(bad, good\)"):
        gather(split(read_file(path, DataConfig())), "label")


def test_types_that_hold_the_same_values_are_one_and_columns_go_by_name():
    first = table("a", text=pa.array(["x"]), label=pa.array([1], pa.int8()))
    second = table("b", label=pa.array([2], pa.int64()), text=pa.array(["y"], pa.large_string()).dictionary_encode())
    both = split(first, second, table("c", text=pa.nulls(1), label=pa.array([3], pa.uint16())))
    assert gather(both, "text").to_pylist() == ["x", "y", None]
    assert gather(both, "label").to_pylist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"label": ["1"]}, ["'label'", "whole numbers in a", "text in b"]),
        ({"label": [1.5]}, ["'label'", "numbers with decimals in b"]),
        ({"label": [True]}, ["'label'", "true and false in b"]),
        ({"labels": [1]}, ["b has no column 'label'", "a"]),
    ],
)
def test_files_of_one_split_that_contradict_are_refused(other, words):
    with pytest.raises(DataError) as caught:
        gather(split(table("a", label=[1]), table("b", **other)), "label")
    assert [word for word in words if word not in str(caught.value)] == []


def test_decimals_of_a_database_are_numbers():
    whole, fractions = (pa.array([Decimal(text)], pa.decimal128(38, scale)) for text, scale in (("7", 0), ("1.5", 2)))
    assert gather(split(table("a", x=whole), table("b", x=[8])), "x").to_pylist() == [7, 8]
    assert gather(split(table("a", x=fractions), table("b", x=[2.5])), "x").to_pylist() == [1.5, 2.5]
    large = pa.array([Decimal(10) ** 30], pa.decimal128(38, 0))
    assert gather(split(table("a", x=large)), "x").to_pylist() == [Decimal(10) ** 30]


def test_a_row_knows_its_file_and_its_place_there():
    columns = Columns("labelled", "text", label="label")
    shards = (table("a.csv", text=["x", " "], label=[1, 1]), table("b.csv", text=["y"], label=[1]))
    rows = select_rows(split(*shards), columns)
    assert [where(rows, place) for place in range(2)] == ["a.csv, row 1", "b.csv, row 1"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_a_dotted_name_reads_a_field_inside_an_object(name, tmp_path):
    rows = [{"meta": {"label": "good", "n": {"m": 1}}}, {"meta": None}, {"meta": {"label": "bad", "n": None}}]
    if name == "d.jsonl":
        (tmp_path / name).write_text('{"meta": {"label": "good", "n": {"m": 1}}}\n{}\n{"meta": {"label": "bad"}}\n')
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    whole = split(read_file(tmp_path / name, DataConfig()))
    assert gather(whole, "meta.label").to_pylist() == ["good", None, "bad"]
    assert gather(whole, "meta.n.m").to_pylist() == [1, None, None]
    assert gather(whole, "meta.lable") is None


def test_a_column_whose_own_name_has_a_dot_comes_first():
    whole = split(table("a", **{"meta.label": ["own"], "meta": [{"label": "inner"}]}))
    assert gather(whole, "meta.label").to_pylist() == ["own"]


def test_a_folder_above_a_parquet_file_is_not_a_column(tmp_path):
    (tmp_path / "label=7").mkdir()
    shard = write(tmp_path / "label=7" / "d.parquet", {"text": ["a"]})
    assert shard.table.column_names == ["text"]


def test_arrow_texts_that_are_not_unicode_are_refused(tmp_path):
    wrong = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pyarrow.parquet.write_table(pa.table({"text": wrong}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="not a whole Parquet file"):
        read_file(tmp_path / "d.parquet", DataConfig())
