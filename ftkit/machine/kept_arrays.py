"""Arrays that can be made again, kept in the cache folder under keys; what was not used for longest makes room."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ftkit.config.cache import CacheConfig
from ftkit.machine.disk import UNFINISHED, cache_folder, is_of_disk
from ftkit.machine.sealed import SUFFIX, find_sealed, is_sound, seal

Arrays = Mapping[str, NDArray[Any]]


def kept_tokens(config: CacheConfig) -> "KeptArrays | None":
    """Return the place of tokens that were made before; None where the configuration wants none."""
    return KeptArrays("tokens", config.limit_bytes) if config.tokens else None


class KeptArrays:
    """A folder of arrays.

    Processes share it without a lock: a file is whole from the moment that it has its name, and two that make the same
    write the same.
    """

    def __init__(self, name: str, limit: int) -> None:
        """Keep arrays.

        Args:
            name: of the folder in the cache folder.
            limit: bytes of all files.
        """
        self.folder = cache_folder() / name
        self._limit = limit
        self._held: int | None = None

    def get(self, key: str) -> Arrays | None:
        """Return the arrays of a key; None where there are none, or their file is damaged, which removes it."""
        file = find_sealed(self._place(key), key)
        if file is None:
            return None
        try:
            if not is_sound(file):
                file.unlink(missing_ok=True)
                return None
            os.utime(file)
            return dict(load_file(file))
        except FileNotFoundError:  # another process has made room
            return None

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep the arrays of a key; on a disk that is full or read-only nothing is kept, and the next run makes them.

        Args:
            key: letters and digits.
            arrays: at least one, each contiguous.
        """
        place = self._place(key)
        aside = place / f"{key}.{os.getpid()}{UNFINISHED}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            save_file(dict(arrays), aside)
            self._make_room(aside.stat().st_size)
            seal(aside, key)
        except (OSError, SafetensorError) as error:
            if not is_of_disk(error):
                raise
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
        for file in self.folder.glob(f"??/*{SUFFIX}"):
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
