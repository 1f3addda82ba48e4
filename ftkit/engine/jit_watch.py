"""Announce what DeepSpeed compiles at its first use, and do not wait for a process that is dead.

torch keeps other processes out of a build folder by a file `lock` (torch/utils/file_baton.py), which a compilation that
is killed leaves behind: every later start would wait for it for ever, without a word.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ftkit.units import format_seconds

_POLL_SECONDS = 1.0
_LOADING_SECONDS = {True: 3.0, False: 30.0}
"""Whether it surely compiles, to how long a lock is held before that is told: what was compiled by an earlier start is
locked too while it loads, which takes some seconds on a busy machine, and ninja looks through it for a moment."""
_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p", "fuse")
"""File systems on which another machine may hold a lock, by the beginnings of their names."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def watched_compiling(every_seconds: float = 60.0) -> Iterator[None]:
    """While the block runs, log what is compiled, soon after it begins and each minute, and remove locks of the dead.

    A lock is of the dead when no process of this machine has it open, as its owner does until it is done. Where another
    machine or another user may hold it, it stays, and the log says how to be rid of it.

    Args:
        every_seconds: between two words.
    """
    is_over = threading.Event()
    watcher = threading.Thread(target=_Watch(every_seconds).run, args=(is_over,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


@dataclass
class _Watch:
    """The locks that one watcher has seen; a lock is recognized by its inode."""

    every_seconds: float
    begun: dict[int, float] = field(default_factory=dict)
    told: dict[int, float] = field(default_factory=dict)
    suspects: set[int] = field(default_factory=set)

    def run(self, is_over: threading.Event) -> None:
        while not is_over.wait(_POLL_SECONDS):
            for lock in _locks():
                with contextlib.suppress(FileNotFoundError):  # its owner has just removed it
                    self._look(lock, lock.stat())

    def _look(self, lock: Path, found: os.stat_result) -> None:
        number, now = found.st_ino, time.monotonic()
        is_held = _is_held(found)
        if not is_held and _is_ours_alone(lock, found):
            if number not in self.suspects:  # a file is there a moment before its owner's handle is
                self.suspects.add(number)
            elif lock.stat().st_ino == number:
                lock.unlink()
                _log.warning("removed %s, which a compilation that was killed had left", lock)
            return
        begun = self.begun.setdefault(number, now)
        loading = _LOADING_SECONDS[not any(lock.parent.glob("*.so")) or _is_worked_in(lock.parent)]
        if now - self.told.get(number, begun - self.every_seconds + loading) < self.every_seconds:
            return
        since = f", since {format_seconds(now - begun)}" if number in self.told else ""
        self.told[number] = now
        name = lock.parent.name
        if is_held:
            _log.warning("compiling DeepSpeed's %s%s; later starts need not", name, since)
        else:
            _log.warning(
                "waiting%s for another machine, or another user, to compile %s; if nobody does, remove %s",
                since, name, lock,
            )  # fmt: skip


def _locks() -> list[Path]:
    """Return the locks in torch's build folders."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return sorted(Path(named).glob("*/lock"))
    from torch.utils.cpp_extension import get_default_build_root

    return sorted(Path(get_default_build_root()).glob("*/*/lock"))


def _is_held(found: os.stat_result) -> bool:
    """Return whether a process of this machine, as far as this user sees them, has a file open (Linux)."""
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # a process that has ended, or of another user
            if os.path.samestat(handle.stat(), found):
                return True
    return False


def _is_worked_in(folder: Path) -> bool:
    """Return whether a process works in a folder (Linux), as ninja and its compilers do in that which they build.

    torch 2.13, utils/cpp_extension.py, _run_ninja_build
    """
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # a process that has ended, or of another user
            if place.samefile(folder):
                return True
    return False


def _is_ours_alone(lock: Path, found: os.stat_result) -> bool:
    """Return whether only processes that this one can see may hold a lock."""
    return found.st_uid == os.getuid() and not _file_system(lock).startswith(_NETWORK)


def _file_system(path: Path) -> str:
    """Return the kind of file system that a path lies on (Linux), as the longest mount point above it says."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(place, kind) for _, place, kind, *_ in mounts if path.is_relative_to(place)]
    return max(above, key=lambda one: len(one[0]), default=("", ""))[1]
