"""Files that can be made again, kept in the cache folder under keys; what was not used for longest makes room."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ftkit.machine.disk import UNFINISHED, cache_folder
from ftkit.machine.sealed import SUFFIX, find_sealed, is_sound, seal


class KeptFiles:
    """A folder of files.

    Processes share it without a lock: a file is whole from the moment that it has its name, and two that make the same
    write the same.
    """

    def __init__(self, name: str, limit: int, suffix: str = SUFFIX) -> None:
        """Keep files.

        Args:
            name: of the folder in the cache folder.
            limit: bytes of all files.
            suffix: how their names end.
        """
        self.folder = cache_folder() / name
        self._limit = limit
        self._suffix = suffix
        self._held: int | None = None

    def find(self, key: str) -> Path | None:
        """Return the file of a key; None where there is none, or one that is damaged, which is removed.

        Raises:
            OSError: the disk gives no answer. A file that another process has just removed is not there.
        """
        file = find_sealed(self._place(key), key, self._suffix)
        if file is None:
            return None
        try:
            if not is_sound(file):
                file.unlink(missing_ok=True)
                return None
            os.utime(file)
        except FileNotFoundError:
            return None
        return file

    def put(self, key: str, write: Callable[[Path], object]) -> Path:
        """Keep the file of a key.

        Args:
            key: letters and digits.
            write: writes it under the name that it is given.

        Returns:
            The file.

        Raises:
            OSError, SafetensorError: the disk is full or not writable; nothing is left of the attempt.
        """
        place = self._place(key)
        aside = place / f"{key}.{os.getpid()}{UNFINISHED}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            write(aside)
            self._make_room(aside.stat().st_size)
            return seal(aside, key, self._suffix)
        finally:
            aside.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Return all files, the least recently used first."""
        return [file for _, _, file in sorted(self._look())]

    def num_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(size for _, size, _ in self._look())

    def _place(self, key: str) -> Path:
        return self.folder / key[:2]  # thousands of files in one folder are slow to list

    def _look(self) -> Iterator[tuple[float, int, Path]]:
        for file in self.folder.glob(f"??/*{self._suffix}"):
            try:
                about = file.stat()
            except FileNotFoundError:
                continue
            yield about.st_mtime, about.st_size, file

    def _make_room(self, num_bytes: int) -> None:
        self._held = (self.num_bytes() if self._held is None else self._held) + num_bytes
        if self._held <= self._limit:
            return
        self._held = self.num_bytes() + num_bytes  # others write here too
        for _, size, file in sorted(self._look()):
            if self._held <= self._limit:
                return
            file.unlink(missing_ok=True)
            self._held -= size
