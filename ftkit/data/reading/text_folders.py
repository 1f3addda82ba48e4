"""Folders whose text files are the rows: one folder for each class, below `train` and `test` or not, or files alone."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ftkit.config.tree import DataConfig
from ftkit.data.reading.decoding import utf8_blocks
from ftkit.data.reading.shards import Shard
from ftkit.data.reading.splits import is_split_name
from ftkit.data.spill import texts_of


@dataclass(frozen=True)
class TextFolder:
    """Text files below a folder.

    Attributes:
        folder: the folder.
        splits: the name of a split to the folder that has its classes or its files.
    """

    folder: Path
    splits: dict[str, Path]

    def shards(self, split: str, config: DataConfig) -> tuple[Shard, ...]:
        """Read a split: a column `text`, and `label` where folders are classes.

        Args:
            split: a name in `splits`.
            config: `encoding` of the files.

        Returns:
            A shard for each class, or one of all files.

        Raises:
            DataError: a file is not text, or has another encoding.
        """
        place = self.splits[split]
        classes = [inner for inner in _folders(place) if _texts(inner)]
        labelled = tuple(_read(inner, config.encoding, inner.name) for inner in classes)
        return labelled or (_read(place, config.encoding, None),)

    def unread(self, used: list[str]) -> list[str]:
        """Return the names of what lies beside the files of the splits that are used."""
        places = [self.splits[split] for split in used]
        classes = [inner for place in places for inner in _folders(place) if _texts(inner)]
        places = [place for place in places if place not in {inner.parent for inner in classes}]
        read = {file for place in (*classes, *places) for file in _texts(place)}
        around = {self.folder, *(self.splits[split] for split in used), *classes}
        lying = [entry for place in sorted(around) for entry in sorted(place.iterdir())]
        kept = read | around
        return [str(entry.relative_to(self.folder)) for entry in lying if not _is_hidden(entry) and entry not in kept]


def list_texts(folder: Path) -> TextFolder | None:
    """Find folders of text files.

    Args:
        folder: an existing folder.

    Returns:
        The folders inside that are called as splits are, where they hold texts or classes of texts; else the folder
        itself as the split `train`; None where there are no text files.
    """
    splits = {inner.name: inner for inner in _folders(folder) if is_split_name(inner.name) and _holds_texts(inner)}
    if splits:
        return TextFolder(folder, splits)
    return TextFolder(folder, {"train": folder}) if _holds_texts(folder) else None


def _read(folder: Path, encoding: str, label: str | None) -> Shard:
    files = _texts(folder)
    columns = {"text": texts_of(b"".join(utf8_blocks(file, encoding)).decode() for file in files)}
    if label is not None:
        columns["label"] = pa.array([label] * len(files), pa.large_string())
    return Shard(str(folder), pa.table(columns), files=tuple(map(str, files)))


def _holds_texts(folder: Path) -> bool:
    return bool(_texts(folder)) or any(_texts(inner) for inner in _folders(folder))


def _texts(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".txt" and not _is_hidden(file))


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry))


def _is_hidden(entry: Path) -> bool:
    return entry.name.startswith(".")
