"""Notice that a launcher has ended, which by itself ends none of the processes that it started.

DeepSpeed's launcher is two processes (the command, and one on each machine that starts the ranks), torchrun is one, and
`ftkit compare` is another, of one training after the other. A signal to one of them alone may end it while what it has
started trains on, without anybody who waits for it.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_NAMES = {
    "deepspeed", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run", "torch.distributed.launch",
    "ftkit.cli.launch", "accelerate", "ftkit",
}  # fmt: skip
_EVERY_SECONDS = 1.0
"""Between two looks, each of which reads two small files of the system."""


def launchers() -> tuple[int, ...]:
    """Return the launcher's processes above this one, the nearest first; none where the system does not tell.

    A shell above them is left out: a command that is started with `nohup` may outlive it.
    """
    found: list[int] = []
    pid = os.getppid()
    while pid > 1 and _is_launcher(pid):
        found.append(pid)
        pid = _parent(pid)
    return tuple(found)


@contextmanager
def watched(above: tuple[int, ...], ended: Callable[[], None]) -> Iterator[None]:
    """Look every second, while the block runs, whether the launcher is still there.

    Args:
        above: its processes, as `launchers` returned them when this process began.
        ended: called once, by a thread, where one of them is gone. A process whose parent ends gets another one at
            once, so what `launchers` returns changes then, whether or not anybody has waited for the one that ended.

    Yields:
        Nothing.
    """
    over = threading.Event()

    def look() -> None:
        while launchers() == above:
            if over.wait(_EVERY_SECONDS):
                return
        ended()

    thread = threading.Thread(target=look, name="launcher", daemon=True)
    if above:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if above:
            thread.join()


def _is_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:  # it has ended, or this system has no /proc
        return False
    return program(words) in _NAMES


def program(words: Sequence[str]) -> str:
    """Return the name of what a command runs: that of its file, or of the script or module that it gives to Python.

    Args:
        words: the command, not empty.
    """
    rest = iter(words)
    name = Path(next(rest)).name
    if not name.startswith("python"):
        return name
    for word in rest:
        if word in ("-W", "-X"):  # the options of Python with a word of their own, but for -m and -c
            next(rest, None)
        elif not word.startswith("-"):
            return Path(word).name
    return name


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended meanwhile
        return 0
    return int(stat.rpartition(")")[2].split()[1])  # the name before it, in brackets, may hold anything (proc(5))
