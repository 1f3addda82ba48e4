"""Work that a copy of this process does, so that the memory which the work takes ends with the copy.

What Python frees goes back to the system only where nothing else has come to lie beside it, so a process keeps much of
what it once needed.
"""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from ftkit.machine.process import ProcessContext
from ftkit.machine.threads import work_in_a_copy

Result = TypeVar("Result")
Note = Callable[[str], None]


class CopyLostError(Exception):
    """The copy ended before it had answered, as where the system had no memory for it."""


def can_be_copied(process: ProcessContext) -> bool:
    """Return whether a copy of this process can compute.

    Linux alone copies a process that has native threads without trouble; a driver of a GPU cannot be copied, nor a
    launcher's connections. Beside other threads of Python's, as in a notebook, one of them may hold a lock that nobody
    would let go of in the copy.

    Args:
        process: the place of this process.
    """
    is_alone = process.launcher == "none" and process.world_size == 1 and threading.active_count() == 1
    return is_alone and sys.platform == "linux" and process.device.type == "cpu"


def in_a_copy(work: Callable[[Note], Result], note: Note) -> Result:
    """Have a copy of this process do some work, and return what that returns.

    Args:
        work: given a function that tells of it; what it returns or raises can be pickled.
        note: told in this process what the work tells.

    Raises:
        CopyLostError: the copy ended early.
        OSError: the system allows no further process.
        Exception: what the work raised.
    """
    context = multiprocessing.get_context("fork")
    hears, tells = context.Pipe(duplex=False)
    copy = context.Process(target=_serve, args=(work, tells), daemon=True)
    copy.start()
    tells.close()
    try:
        while True:
            kind, value = hears.recv()
            if kind == "returned":
                return value  # type: ignore[no-any-return]  # as pickled
            if kind == "raised":
                raise value
            note(value)
    except EOFError:
        copy.join()
        raise CopyLostError(f"a copy of this process ended with {copy.exitcode}") from None
    finally:
        copy.kill()
        copy.join()
        hears.close()


def _serve(work: Callable[[Note], Any], tells: Connection) -> None:
    """Be the copy."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)

    def run() -> None:
        try:
            answer = "returned", work(lambda text: tells.send(("told", text)))
        except BaseException as error:
            answer = "raised", error
        tells.send(answer)

    work_in_a_copy(run)
