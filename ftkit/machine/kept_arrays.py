"""Arrays that can be made again, kept in the cache folder under keys."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ftkit.config.cache import CacheConfig
from ftkit.machine.disk import is_of_disk
from ftkit.machine.kept_files import KeptFiles

Arrays = Mapping[str, NDArray[Any]]


def kept_tokens(config: CacheConfig) -> "KeptArrays | None":
    """Return the place of tokens that were made before; None where the configuration wants none."""
    return KeptArrays("tokens", config.limit_bytes) if config.tokens else None


class KeptArrays:
    """A folder of arrays.

    Attributes:
        kept: the files.
    """

    def __init__(self, name: str, limit: int) -> None:
        """Keep arrays.

        Args:
            name: of the folder in the cache folder.
            limit: bytes of all files.
        """
        self.kept = KeptFiles(name, limit)

    def get(self, key: str) -> Arrays | None:
        """Return the arrays of a key; None where there are none, or their file is damaged, which removes it."""
        file = self.kept.find(key)
        try:
            return None if file is None else dict(load_file(file))
        except FileNotFoundError:  # another process has made room
            return None

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep the arrays of a key; on a disk that is full or read-only nothing is kept, and the next run makes them.

        Args:
            key: letters and digits.
            arrays: at least one, each contiguous.
        """
        try:
            self.kept.put(key, partial(save_file, dict(arrays)))
        except (OSError, SafetensorError) as error:
            if not is_of_disk(error):
                raise
