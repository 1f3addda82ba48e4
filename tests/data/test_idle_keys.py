"""Keys that say how to read or to split data, and have no effect on the data at hand, are named."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftkit.config.tree import DataConfig
from ftkit.data.idle_keys import idle_for_source
from ftkit.data.reading.shards import Shard, Split
from ftkit.data.reading.sources import Source, load_source

ROWS = pa.table({"text": ["a b", "c d", "e f", "g h"], "label": ["x", "y", "x", "y"], "by": ["1", "2", "3", "4"]})


@pytest.fixture
def folder(tmp_path):
    for name in ("train", "validation", "test"):
        pq.write_table(ROWS, tmp_path / f"{name}.parquet")
    (tmp_path / "data.csv").write_text("text,label\na b,x\nc d,y\n")
    return tmp_path


def told(path, **settings):
    config = DataConfig(dataset=str(path), **settings)
    return [finding.text for finding in idle_for_source(config, load_source(config))]


@pytest.mark.parametrize(
    "settings",
    [
        {"encoding": "cp1252"},
        {"separator": ";"},
        {"quotes": "none"},
        {"subset": "sst2"},
        {"validation_share": 0.3},
        {"test_share": 0.3},
        {"group_column": "by"},
        {"near_duplicates": "drop"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_key_without_effect_on_a_folder_of_parquet_files_with_all_splits_is_named(settings, folder):
    (key,) = settings
    (sentence,) = told(folder, **settings)
    assert sentence.startswith(f"data.{key} has no effect ")


@pytest.mark.parametrize(
    "settings", [{"encoding": "cp1252"}, {"separator": ","}, {"quotes": "none"}, {"test_share": 0.3}], ids=str
)
def test_a_key_that_says_how_to_read_or_split_the_file_at_hand_is_not_named(settings, folder):
    assert told(folder / "data.csv", **settings) == []


def test_nothing_is_named_of_keys_as_they_are_by_default(folder):
    assert told(folder) == told(folder / "data.csv") == told("demo") == []


def test_a_name_with_a_dot_is_not_taken_for_that_of_a_file():
    split = Split("train", (Shard("org/reviews-v1.5.csv, split train", ROWS),))
    config = DataConfig(dataset="org/reviews-v1.5.csv", separator=";")
    (finding,) = idle_for_source(config, Source(config.dataset, {"train": split}))
    assert finding.text == "data.separator has no effect on a dataset that is not text files"
