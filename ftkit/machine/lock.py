"""Let one process do what needs doing once, of all that share a disk; the only importer of filelock."""

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from ftkit.errors import DeviceError
from ftkit.machine.disk import replace_text


@contextlib.contextmanager
def locked(target: Path, waiting: Callable[[str], None], cure: str) -> Iterator[None]:
    """Hold a lock that ends with the process that holds it.

    The system's own lock (flock; NFS since version 4 has it too) decides, so a process that was killed leaves nothing
    behind that stops the next one. The owner beside it is for people to read.

    Args:
        target: what is being made.
        waiting: told who has the lock, if somebody has.
        cure: what the user could do if the folder cannot be written.

    Raises:
        DeviceError: the folder cannot be written.
    """
    lock, owner = _lock(target), _owner(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        waiting(owner_of(target))
        lock.acquire()
    except OSError as error:
        raise DeviceError(f"cannot write {target.parent}: {error.strerror}; {cure}") from None
    try:
        replace_text(owner, f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def owner_of(target: Path) -> str:
    """Return who makes something, in words."""
    try:
        return _owner(target).read_text(encoding="utf-8")
    except OSError:  # between taking the lock and saying so
        return "another process"


@contextlib.contextmanager
def if_free(target: Path) -> Iterator[bool]:
    """Hold the lock of `locked` if nobody has it.

    Args:
        target: what may be being made.

    Yields:
        Whether the lock is held here.
    """
    lock = _lock(target)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock(target: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(target.with_name(f"{target.name}.lock"))


def _owner(target: Path) -> Path:
    return target.with_name(f"{target.name}.owner")
