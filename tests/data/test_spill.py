"""Data that lies on a disk is what it would be in memory."""

import errno
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers

from ftkit.config.files import load_config
from ftkit.config.tree import DataConfig
from ftkit.data import spill
from ftkit.data.prepare import prepare_data
from ftkit.data.reading.files import read_file
from ftkit.data.reading.shards import Split
from ftkit.data.spill import Growing, table_of, taken
from ftkit.data.table.fields import gather
from ftkit.errors import DataError
from tests.helpers import save_tiny_model

ROWS = pa.table(
    {
        "text": pa.chunked_array([[f"text {number}" for number in range(begin, begin + 30)] for begin in (0, 30, 60)]),
        "file": pa.array(["a", "b", "b"] * 30).dictionary_encode(),
        "number": pa.array([None if number % 7 == 0 else number for number in range(90)]),
    }
)


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(spill, "LEAST_BYTES", 64)
    monkeypatch.setattr(spill, "_ROWS", 20)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # asked for anew
    return tmp_path


def test_a_table_on_disk_has_the_rows_of_its_batches_and_takes_no_memory_of_arrow(on_disk):
    before = pa.total_allocated_bytes()
    table = table_of((batch for batch in ROWS.to_batches()), ROWS.schema)
    assert pa.total_allocated_bytes() == before
    assert table.equals(ROWS)
    assert table.schema == ROWS.schema
    assert list(on_disk.iterdir()) == [], "nothing is left behind, however a run ends"


@pytest.mark.parametrize("places", [[], [89], [3, 4, 19, 20, 21, 60, 88], list(range(90))], ids=len)
def test_rows_that_are_taken_of_a_large_table_are_those_of_a_small_one(places, on_disk):
    places = np.array(places, np.int64)
    assert taken(ROWS, places).equals(ROWS.take(pa.array(places)))


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.bool_])
def test_an_array_that_grows_past_memory_is_that_of_its_parts_and_can_be_written_to(dtype, on_disk):
    parts = [np.arange(size).astype(dtype) for size in (0, 1, 50, 3, 400, 0, 7)]
    growing = Growing(dtype)
    for part in parts:
        growing.add(part.tolist())
    assert len(growing) == 461
    whole = growing.array()
    assert whole.dtype == dtype
    assert np.array_equal(whole, np.concatenate(parts))
    whole[0] = 1
    assert whole[0] == 1
    assert len(Growing(dtype).array()) == 0


LABELS = ["bad", "good", "good"] * 20
RECORDS = [
    {"text": f"the movie {place} was\nfun {'very ' * (place % 9)}", "label": word} for place, word in enumerate(LABELS)
]
RECORDS += [{"text": " ", "label": "good"}, {"text": "ends\r\nof lines", "label": "bad"}, RECORDS[3]]


def write_csv(path):
    rows = ["{text},{label}".format(**{name: f'"{value}"' for name, value in row.items()}) for row in RECORDS]
    path.write_bytes("\n".join(["text,label", *rows]).encode() + b"\n")


WRITERS = {
    ".csv": write_csv,
    ".json": lambda path: path.write_text(json.dumps(RECORDS)),
    ".jsonl": lambda path: path.write_text("\n".join(map(json.dumps, RECORDS))),
    ".parquet": lambda path: pq.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=7),
    ".arrow": lambda path: write_arrow(path, pa.Table.from_pylist(RECORDS)),
}


def write_arrow(path, table):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != ".csv"])  # whose reader ends a little later
def test_rows_of_every_kind_of_file_lie_on_the_disk(kind, tmp_path, on_disk):
    path = tmp_path / f"data{kind}"
    WRITERS[kind](path)
    before = pa.total_allocated_bytes()
    split = Split("train", (read_file(path, DataConfig()),))
    texts = gather(split, "text")
    assert pa.total_allocated_bytes() == before
    assert texts.to_pylist() == [row["text"] for row in RECORDS]


@pytest.mark.parametrize(
    ("task", "kind"), [("causal-lm", ".csv"), *(("sequence-classification", kind) for kind in WRITERS)]
)
def test_a_dataset_on_disk_is_to_the_bit_that_in_memory(task, kind, tmp_path, on_disk, monkeypatch):
    path = tmp_path / f"data{kind}"
    WRITERS[kind](path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(save_tiny_model(tmp_path / "model", "bert"))
    settings = [f"data.dataset={path}", f"task={task}", "data.max_length=16"]
    settings += ["data.text_column=text"] if task == "causal-lm" else []
    config = load_config(settings=settings)

    there = prepare_data(config.data, config.task, tokenizer, 1)
    monkeypatch.setattr(spill, "LEAST_BYTES", 2**25)
    here = prepare_data(config.data, config.task, tokenizer, 1)

    assert there.fingerprint == here.fingerprint
    assert there.report == here.report
    assert there.highest_token == here.highest_token
    for one, other in zip(there.splits, here.splits, strict=True):
        assert np.array_equal(one.num_targets, other.num_targets)
    for name, examples in here.examples.items():
        assert there.examples[name].hashes() == examples.hashes()
        assert there.examples[name].where(0) == examples.where(0)


def test_a_full_disk_is_a_sentence(on_disk, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill, "_file", lambda: type("Full", (), {"write": full})())
    with pytest.raises(DataError, match=rf"^{on_disk} has no room for the rows and tokens .* with TMPDIR$"):
        Growing(np.int32).add(range(1000))


def test_a_disk_that_is_full_at_the_last_write_is_the_same_sentence(on_disk, monkeypatch):
    monkeypatch.setattr(spill, "_file", lambda: Path("/dev/full").open("r+b", buffering=2**16))  # noqa: SIM115  # by its user
    growing = Growing(np.int32)
    growing.add(range(1000))
    with pytest.raises(DataError, match="has no room for the rows and tokens"):
        growing.array()
