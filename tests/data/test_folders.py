"""The files of a folder: a split's files have its whole name; a likeness is left alone and told."""

import pytest

from ftkit.config.tree import DataConfig
from ftkit.data.sources import load_source
from ftkit.errors import DataError

ROWS = "text,label\na film,good\na plot,bad\n"
ALIKE = ("train_old.csv", "train (1).csv", "train-copy.csv", "train2.csv", "test2.csv", "mytrain.csv", "train.csv~")


def load(folder, *names, **settings):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(ROWS)
    return load_source(DataConfig(dataset=str(folder), **settings))


def files(source, folder):
    """Return role to the names of its files."""
    strip = len(str(folder)) + 1
    return {role: [shard.name[strip:] for shard in split.shards] for role, split in source.splits.items()}


def test_a_name_that_resembles_a_splits_is_not_read_and_named(tmp_path):
    source = load(tmp_path, "train.csv", "Test.csv", *ALIKE)
    assert files(source, tmp_path) == {"train": ["train.csv"], "test": ["Test.csv"]}
    assert set(source.unread) == set(ALIKE)


def test_numbered_shards_make_up_one_split_in_their_order(tmp_path):
    names = [f"train-0000{number}-of-00003.csv" for number in (2, 0, 1)]
    source = load(tmp_path, *names, "train_old.csv")
    assert files(source, tmp_path) == {"train": sorted(names)}
    assert source.unread == ("train_old.csv",)


def test_files_in_the_data_folder_are_found(tmp_path):
    source = load(tmp_path, "data/train-00000-of-00001-0123456789abcdef.csv", "data/dev.csv", "README.md")
    assert files(source, tmp_path) == {
        "train": ["data/train-00000-of-00001-0123456789abcdef.csv"],
        "validation": ["data/dev.csv"],
    }
    assert source.unread == ("README.md",)


def test_a_file_of_any_name_is_a_split_where_it_is_named(tmp_path):
    source = load(tmp_path, "train.csv", "train_old.csv", "test2.csv", train_split="train_old", test_split="test2")
    assert files(source, tmp_path) == {"train": ["train_old.csv"], "test": ["test2.csv"]}
    assert source.unread == ("train.csv",)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train.csv", "train.tsv"], ["several files", "train.csv, train.tsv"]),
        (["train.csv", "data/train.csv"], ["several files"]),
        (["train.csv", "train-00000-of-00001.csv"], ["several files"]),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv"], ["number 1 of 3 is missing"]),
        (["train-00000-of-00001.csv", "train-00001-of-00002.csv"], ["not of one table"]),
        (["train-00000-of-00002.csv", "train-00001-of-00002.tsv"], ["not of one table"]),
        (["train.csv", "dev.csv", "val.csv"], ["dev, val", "data.validation_split"]),
        (["train1.csv", "train2.csv"], ["holds no train.csv", "train1.csv, train2.csv"]),
        (["test.csv"], ["no split 'train'", "data.train_split"]),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused(names, words, tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path, *names)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
