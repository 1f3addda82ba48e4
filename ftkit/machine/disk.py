"""Write folders that are either whole or absent: aside, flushed, renamed; and find the cache folder."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ftkit.errors import DeviceError

UNFINISHED = ".tmp"
"""How the name ends of what is being written."""
CACHE_VARIABLE = "FTKIT_CACHE"

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""As safetensors quotes the system."""


def cache_folder() -> Path:
    """Return the cache folder, whose contents can be made again: FTKIT_CACHE, else `ftkit` among the user's caches."""
    named = os.environ.get(CACHE_VARIABLE)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named).expanduser() if named else Path(caches) / "ftkit"


@contextmanager
def written_aside(target: Path, elsewhere: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when all of it is on the disk.

    Args:
        target: what it becomes; it must not be there yet. Something that changes is named by `replace_text`.
        elsewhere: what the user could do to have it written to another disk, for the error.

    Yields:
        The folder to write into.

    Raises:
        DeviceError: the disk is full or not writable; nothing is left of the attempt.
    """
    aside = target.with_name(f"{target.name}{UNFINISHED}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for file in (*aside.iterdir(), aside):
            _flush(file)
        aside.rename(target)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        raise DeviceError(f"cannot write {target}: {error}; free some space or {elsewhere}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that at every moment the old text or the new one is there, whole.

    Args:
        path: the file, which may be there.
        text: its new content.

    Raises:
        OSError: the disk is full or not writable; the old text is there, and nothing of the new one.
    """
    aside = path.with_name(f"{path.name}{UNFINISHED}")
    try:
        aside.write_text(text, encoding="utf-8")
        _flush(aside)
        aside.replace(path)  # POSIX renames a file over another in one go; a folder over another it does not
    finally:
        aside.unlink(missing_ok=True)
    _flush(path.parent)


@contextmanager
def explained_writing(folder: Path, cure: str) -> Iterator[None]:
    """Turn what the system says of a disk that is full or not writable into one sentence.

    Args:
        folder: what is being written.
        cure: what the user could do beside freeing space.

    Raises:
        DeviceError: naming folder, reason and cure. Other errors pass.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        quoted = _OS_ERROR.search(str(error))
        number = int(quoted[1]) if quoted else getattr(error, "errno", None)
        if number not in _UNWRITABLE:
            raise
        raise DeviceError(f"cannot write {folder}: {os.strerror(number)}; free some space, {cure}") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
