"""Assign the files of a folder to splits, by their whole names and never by similarity."""

import re
from dataclasses import dataclass
from pathlib import Path

from ftkit.config.tree import DataConfig
from ftkit.data.reading.files import KINDS, kind_of_file, read_file
from ftkit.data.reading.shards import Shard
from ftkit.errors import DataError

_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]+)?")


@dataclass(frozen=True)
class FolderFiles:
    """The data files of a folder by the split that each name says.

    Attributes:
        folder: the folder.
        splits: a file's name without suffixes and shard number, to the files of that name.
    """

    folder: Path
    splits: dict[str, list[Path]]

    def shards(self, split: str, config: DataConfig) -> tuple[Shard, ...]:
        """Read the files of a split in order.

        Args:
            split: a name in `splits`.
            config: how text files are written.

        Returns:
            What each file gives.

        Raises:
            DataError: several files have the name of the split, a shard is missing, or a file cannot be read.
        """
        return tuple(read_file(path, config) for path in self._paths(split))

    def _paths(self, split: str) -> list[Path]:
        files = self.splits[split]
        numbered = {int(match["number"]): (file, int(match["count"])) for file in files if (match := _match(file))}
        if len(files) == 1 and not numbered:
            return files
        names = ", ".join(file.name for file in files[:8]) + (", ..." if len(files) > 8 else "")
        if len(numbered) < len(files):
            raise DataError(
                f"{self.folder}: several files could be the split {split!r}: {names}; keep one of them, or name the "
                f"files of one table {split}-00000-of-00002.csv and so on"
            )
        counts = {count for _, count in numbered.values()}
        first = min(1, *numbered)  # some number from 1
        missing = sorted(set(range(first, first + max(counts))) - numbered.keys())
        if len(counts) > 1 or missing or len({kind_of_file(file) for file in files}) > 1:
            told = f"number {missing[0]} of {max(counts)} is missing" if missing else "they are not of one table"
            raise DataError(f"{self.folder}: {names} are shards of {split!r}, but {told}; add or remove files")
        return [numbered[number][0] for number in sorted(numbered)]

    def unread(self, used: list[str]) -> list[str]:
        """Return the names of what lies beside the files of the splits that are used."""
        read = [file for split in used for file in self.splits[split]]
        places = [self.folder, *({file.parent for file in read} - {self.folder})]
        lying = (entry for place in places for entry in sorted(place.iterdir()) if not entry.name.startswith("."))
        kept = {*read, *(file.parent for file in read)}
        return [str(entry.relative_to(self.folder)) for entry in lying if entry not in kept]


def list_folder(folder: Path) -> FolderFiles:
    """Find the data files in a folder and in its `data/`.

    Args:
        folder: an existing folder.

    Returns:
        Every readable file, by split.
    """
    splits: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if file.is_file() and kind_of_file(file) in KINDS and not file.name.startswith("."):
                match = _match(file)
                splits.setdefault(match["split"] if match else _stem(file), []).append(file)
    return FolderFiles(folder, splits)


def _stem(file: Path) -> str:
    return file.name[: file.name.lower().rindex(kind_of_file(file))]


def _match(file: Path) -> re.Match[str] | None:
    return _SHARD.fullmatch(_stem(file))
