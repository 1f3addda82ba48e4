"""Write folders that are either whole or absent: aside, flushed, renamed; wait for a disk; find the cache folder."""

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from ftkit.errors import ConfigError, DeviceError
from ftkit.units import format_seconds

UNFINISHED = ".tmp"
"""How the name ends of what is being written."""
CACHE_VARIABLE = "FTKIT_CACHE"

Written = TypeVar("Written")

_MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.EROFS}
"""Of a disk that is full or gone for a while. A disk that has errors is mounted anew, read-only; people mend that."""
_UNWRITABLE = _MAY_PASS - {errno.ENOENT} | {errno.EFBIG, errno.EACCES, errno.EPERM}
_NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""The answers of file systems that cannot flush, as some network disks and FUSE: there renaming has to do."""
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
"""Seconds between two tries, doubled from the first to the longest."""
_TRIAL_BYTES = 2**25
_READ_BYTES = 2**22
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""As safetensors quotes the system."""
_UNMAPPED = re.compile(r"unable to .*file <.*\((\d+)\)")
"""As torch does where it cannot map a file (torch 2.13, aten/src/ATen/MapAllocator.cpp)."""


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
        make_readable(aside)
        for file in (*aside.iterdir(), aside):
            flush(file)
        aside.rename(target)
        flush(target.parent)
    except (OSError, SafetensorError) as error:
        raise DeviceError(f"cannot write {target}: {error}; free some space or {elsewhere}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def existing_folder(path: Path) -> Path:
    """Return the nearest folder that is there: a path itself, or the first that is of those above it."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def make_folder(folder: Path, cure: str) -> None:
    """Make a folder, where it is not there.

    Args:
        folder: which.
        cure: what the user could do where that cannot be.

    Raises:
        ConfigError: naming folder, reason and cure.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror}; {cure}") from error


def check_writable(folder: Path) -> None:
    """Raise OSError where nothing can be written in a folder, or in the nearest one above it that is there."""
    tempfile.TemporaryFile(dir=existing_folder(folder)).close()


def write_rate(folder: Path, num_bytes: int) -> float:
    """Return the bytes per second that a folder's disk takes, flushing included, by writing a temporary file.

    Args:
        folder: on the disk.
        num_bytes: that a save is to write; at most 32 MiB of them are tried, which a slow disk takes a second for.

    Raises:
        OSError: the disk is full or not writable.
    """
    data = os.urandom(min(max(num_bytes, 1), _TRIAL_BYTES))  # some file systems compress, and zeros are nothing
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        file.write(data)
        file.flush()
        flush(Path(file.name))
        return len(data) / (time.perf_counter() - started)


def read_rate(folder: Path, num_bytes: int) -> float:
    """Return the bytes per second that a folder's disk gives, by reading a temporary file that was just written.

    The system is asked to forget what it holds of the file, so that the disk is read; one that does not (a disk in
    memory, some networks) is as fast as that.

    Args:
        folder: on the disk.
        num_bytes: to read.

    Raises:
        OSError: the disk is full or not writable.
    """
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(os.urandom(num_bytes))
        file.flush()
        flush(Path(file.name))
        handle = os.open(file.name, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
            while os.read(handle, _READ_BYTES):
                pass
            return num_bytes / (time.perf_counter() - started)
        finally:
            os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that at every moment the old text or the new one is there, whole.

    Args:
        path: the file, which may be there.
        text: its new content.

    Raises:
        OSError: the disk is full or not writable; the old text is there, and nothing of the new one.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")  # two ranks may write the same at once
    try:
        aside.write_text(text, encoding="utf-8")
        flush(aside)
        aside.replace(path)  # POSIX renames a file over another in one go; a folder over another it does not
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def make_readable(folder: Path) -> None:
    """Give the files of a folder the rights that a new file has; safetensors writes its own for their owner alone.

    Args:
        folder: with all below it.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


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
        number = _system_number(error)
        if number not in _UNWRITABLE:
            raise
        raise DeviceError(f"cannot write {folder}: {os.strerror(number)}; free some space, {cure}") from error


def written_patiently(
    write: Callable[[], Written], folder: Path, patience_seconds: float, tell: Callable[[str], None]
) -> Written:
    """Write, and where the disk is full or gone, wait for somebody to mend that and write again.

    Args:
        write: does all of the writing, and can be called again after it failed; it leaves nothing half written.
        folder: what is being written, for the sentences.
        patience_seconds: since the first failure; the error of the last try is raised.
        tell: takes a sentence when the waiting begins, and when it ends well.

    Returns:
        What `write` returns.

    Raises:
        DeviceError, OSError, SafetensorError: as `write` raises; at once where waiting cannot help.
    """
    began, wait = None, _FIRST_WAIT
    while True:
        try:
            written = write()
        except (OSError, SafetensorError, DeviceError) as error:
            number = _system_number(error)
            began, is_first = began or time.monotonic(), began is None
            left = began + patience_seconds - time.monotonic()
            if number not in _MAY_PASS or left <= 0:
                raise
            if is_first:
                tell(f"warning: cannot write {folder}: {os.strerror(number)}; the run waits and tries again for up to "
                     f"{format_seconds(patience_seconds)} (output.disk_patience)")  # fmt: skip
            time.sleep(min(wait, left))
            wait = min(2 * wait, _LONGEST_WAIT)
            continue
        if began is not None:
            tell(f"wrote {folder} after {format_seconds(time.monotonic() - began)} of waiting; the run goes on")
        return written


@contextmanager
def system_errors() -> Iterator[None]:
    """Turn what torch says of a file that it cannot map into the error of the system.

    Raises:
        OSError: that error, such as that the file is not there.
    """
    try:
        yield
    except RuntimeError as error:
        if (quoted := _UNMAPPED.search(str(error))) is None:
            raise
        number = int(quoted[1])
        raise OSError(number, os.strerror(number)) from error


def is_of_disk(error: OSError | SafetensorError) -> bool:
    """Return whether an error is the disk's: it is full, gone or not writable."""
    return _system_number(error) in _MAY_PASS | _UNWRITABLE


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk, or what a user may have of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _system_number(error: BaseException) -> int | None:
    """Return the system's number of an error, which safetensors quotes and a `DeviceError` has as its cause."""
    if isinstance(error, DeviceError):
        return None if error.__cause__ is None else _system_number(error.__cause__)
    quoted = _OS_ERROR.search(str(error))
    number: int | None = int(quoted[1]) if quoted else getattr(error, "errno", None)
    # Of a file that is not there safetensors makes the error itself, without a number.
    return errno.ENOENT if number is None and isinstance(error, FileNotFoundError) else number


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_FLUSHED:
            raise
    finally:
        os.close(handle)
