"""The files of a folder: a split's files have its whole name; a likeness is left alone and told."""

import pytest

from ftkit.config.tree import DataConfig
from ftkit.data.reading.sources import load_source
from ftkit.data.table.columns import Columns
from ftkit.data.table.fields import gather
from ftkit.data.table.rows import select_rows, where
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


def test_shards_may_count_from_one(tmp_path):
    names = ["train-1-of-2.csv", "train-2-of-2.csv"]
    assert files(load(tmp_path, *names), tmp_path) == {"train": names}


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


def write_texts(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the text of {name}\n")


def test_folders_of_text_files_are_classes(tmp_path):
    write_texts(
        tmp_path, "spam/2.txt", "spam/1.txt", "ham/1.txt", "spam/old/3.txt", "ham/x.html", "notes/x.md", "all.txt"
    )
    source = load_source(DataConfig(dataset=str(tmp_path)))
    train = source.splits["train"]
    assert gather(train, "label").to_pylist() == ["ham", "spam", "spam"]
    assert gather(train, "text").to_pylist()[1] == "the text of spam/1.txt\n"
    assert source.files == {"train": ("ham (1 file)", "spam (2 files)")}
    assert source.unread == ("all.txt", "notes", "ham/x.html", "spam/old")
    rows = select_rows(train, Columns("labelled", "text", label="label"))
    assert where(rows, 2) == f"{tmp_path}/spam/2.txt, line 1"


def test_classes_below_the_names_of_splits_make_up_those_splits(tmp_path):
    write_texts(
        tmp_path, "train/pos/1.txt", "train/neg/1.txt", "test/pos/1.txt", "test/neg/1.txt", "test_old/pos/1.txt"
    )
    write_texts(tmp_path, "train/urls.txt", "README.txt")
    source = load_source(DataConfig(dataset=str(tmp_path)))
    assert source.files == {
        "train": ("train/neg (1 file)", "train/pos (1 file)"),
        "test": ("test/neg (1 file)", "test/pos (1 file)"),
    }
    assert source.unread == ("README.txt", "test_old", "train/urls.txt")


def test_text_files_alone_are_documents(tmp_path):
    write_texts(tmp_path, "b.txt", "a.txt")
    source = load_source(DataConfig(dataset=str(tmp_path)))
    assert gather(source.splits["train"], "text").to_pylist() == ["the text of a.txt\n", "the text of b.txt\n"]
    assert not source.is_lines
    assert source.files == {"train": ("its .txt files (2 files)",)}


def test_a_text_of_another_encoding_is_refused_with_its_file(tmp_path):
    write_texts(tmp_path, "spam/1.txt", "ham/1.txt")
    (tmp_path / "spam" / "2.txt").write_bytes("café".encode("cp1252"))
    with pytest.raises(DataError, match=r"spam/2\.txt: line 1, byte 3.*data\.encoding=cp1252"):
        load_source(DataConfig(dataset=str(tmp_path)))
    source = load_source(DataConfig(dataset=str(tmp_path), encoding="cp1252"))
    assert gather(source.splits["train"], "text").to_pylist()[2] == "café"


def test_a_folder_with_one_table_of_another_name_is_answered_with_the_file_to_give(tmp_path):
    (tmp_path / "es.csv").write_text("text,label\na,b\n")
    with pytest.raises(DataError, match=rf"give one file, such as {tmp_path}/es.csv"):
        load_source(DataConfig(dataset=str(tmp_path)))
