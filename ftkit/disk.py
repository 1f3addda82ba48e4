"""Folders that are whole or not there: written aside, flushed, renamed; and the place of what can be made anew."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ftkit.errors import DeviceError

CACHE_VARIABLE = "FTKIT_CACHE"


def cache_folder() -> Path:
    """Return the folder of what can be made anew: FTKIT_CACHE, else `ftkit` where the user's caches are."""
    named = os.environ.get(CACHE_VARIABLE)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named).expanduser() if named else Path(caches) / "ftkit"


@contextmanager
def written_aside(target: Path, elsewhere: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when all of it is on the disk.

    Args:
        target: what it becomes; an earlier one is replaced.
        elsewhere: what the user could do to have it written to another disk, for the error.

    Yields:
        The folder to write into.

    Raises:
        DeviceError: the disk is full or not writable; nothing is left of the attempt, and an earlier `target` is whole.
    """
    aside = target.with_name(f"{target.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for file in (*aside.iterdir(), aside):
            _flush(file)
        old = target.with_name(f"{target.name}.old")
        if target.exists():
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        raise DeviceError(f"cannot write {target}: {error}; free some space or {elsewhere}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
