"""The process that opens a saved model: a copy of this one that was made early, or a fresh one.

A fresh process imports torch, transformers and PEFT, which takes about as long as the steps of a short run. A copy has
them already. It is made before this process reads data or holds a model, so that it knows nothing of the run, and it
shares its memory with this process until either of them writes there:

    this process    imports   fork   data, model, steps, saved   folder ->   waits        reads what was found
    the copy                   |     waits                                   opens the model, answers, ends
"""

import gc
import os
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from ftkit.config.tree import RunConfig
from ftkit.machine.process import ProcessContext
from ftkit.machine.threads import work_in_a_copy
from ftkit.plan.copied import can_be_copied

_PROGRAM = "ftkit.inference.reopen"
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_BLOCK = 2**16
_EVERY_SECONDS = 1.0
"""Between two looks of a copy at whether the process that it waits for is still there."""
_LONG_SECONDS = 600.0
"""Of a run that gains nothing from a copy, whose memory would become its own page by page."""


@dataclass(frozen=True)
class Ended:
    """How the process ended.

    Attributes:
        code: its exit code, or the negative number of the signal that ended it.
        printed: what it wrote to stderr.
    """

    code: int
    printed: str


def stand_by(config: RunConfig, process: ProcessContext) -> "Standby | None":
    """Return a copy of this process, None where a fresh one has to do.

    Args:
        config: the run, which may not want to open anything.
        process: the place of this process.
    """
    if not (config.output.reopen and can_be_copied(process)):
        return None
    try:
        return Standby()
    except OSError:  # no room for another process
        return None


def needed(standby: "Standby | None", run_seconds: float | None) -> "Standby | None":
    """Return the copy, or None where a run will be so long that it has been sent away.

    Args:
        standby: what `stand_by` returned.
        run_seconds: of the whole run, by its plan; None where nobody knows.
    """
    if standby is None or run_seconds is None or run_seconds <= _LONG_SECONDS:
        return standby
    standby.close()
    return None


class Standby:
    """A copy of this process that waits; it ends by itself when this process ends or forgets it."""

    def __init__(self) -> None:
        """Make the copy.

        Raises:
            OSError: the system allows no further process.
        """
        (asked, asks), (printed, prints) = os.pipe(), os.pipe()
        gc.freeze()  # looking at an object writes to it, and both processes would have a page of their own
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            os.close(asks)
            _serve(asked, prints, parent)
        os.close(asked)
        os.close(prints)
        self._pid, self._asks, self._printed = pid, os.fdopen(asks, "wb", buffering=0), os.fdopen(printed, "rb")
        self.close = weakref.finalize(self, _forget, pid, self._asks, self._printed)

    def open(self, talk: Path, timeout_seconds: float) -> Ended:
        """Have the model opened.

        Args:
            talk: the folder between the two processes.
            timeout_seconds: after which nobody waits for it.

        Raises:
            TimeoutError: it had not ended by then, and has been killed.
        """
        with suppress(BrokenPipeError):  # it is gone, as its exit code will say
            self._asks.write(os.fsencode(talk))
        self._asks.close()
        try:
            text = _read_to_end(self._printed, time.monotonic() + timeout_seconds)
        except TimeoutError:
            self.close()
            raise
        self.close.detach()
        self._printed.close()
        gc.unfreeze()
        return Ended(os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), text)


def open_freshly(talk: Path, timeout_seconds: float) -> Ended:
    """Have the model opened by a fresh process; arguments and errors as those of `Standby.open`."""
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
    try:
        done = subprocess.run(
            [sys.executable, "-m", _PROGRAM, str(talk)], env=environment, stdin=subprocess.DEVNULL, check=False,
            capture_output=True, text=True, errors="replace", timeout=timeout_seconds,
            start_new_session=True,  # a Ctrl-C is the run's, which ends this process
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error
    return Ended(done.returncode, done.stderr)


def _read_to_end(printed: BinaryIO, deadline: float) -> str:
    """Return all that a process writes until it ends, which closes its side."""
    blocks: list[bytes] = []
    while _has_word(printed.fileno(), max(0.0, deadline - time.monotonic())):
        blocks.append(os.read(printed.fileno(), _BLOCK))
        if not blocks[-1]:
            return b"".join(blocks).decode(errors="replace")
    raise TimeoutError


def _has_word(pipe: int, seconds: float) -> bool:
    """Wait for something in a pipe, or for its end; `select` would refuse one that is opened behind 1,023 files."""
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    return bool(waiting.poll(1000 * seconds))


def _forget(pid: int, asks: BinaryIO, printed: BinaryIO) -> None:
    """End a copy that is not needed, which holds nothing that would be lost."""
    asks.close()
    printed.close()
    gc.unfreeze()
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(asked: int, prints: int, parent: int) -> NoReturn:
    """Be the copy: wait to be asked, do it, and end without what ends this program otherwise."""
    code = 1
    try:
        os.setsid()  # a Ctrl-C is the run's
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream, place in enumerate((nowhere, nowhere, prints)):
            os.dup2(place, stream)
        os.close(prints)
        sys.stderr = os.fdopen(2, "w", errors="replace", closefd=False)
        talk = _wait(asked, parent)
        code = _run(talk) if talk else 0
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(asked: int, parent: int) -> str:
    """Return the folder to ask with; nothing where the process that was copied has ended.

    A second copy holds the pipe of the first one open too, so that its end alone does not tell.
    """
    while not _has_word(asked, _EVERY_SECONDS):
        if os.getppid() != parent:
            return ""
    return os.fsdecode(os.read(asked, select.PIPE_BUF))


def _run(talk: str) -> int:
    """Run the program; return what it exits with."""
    codes = [1]

    def run() -> None:
        sys.argv = [_PROGRAM, talk]
        try:
            runpy.run_module(_PROGRAM, run_name="__main__", alter_sys=True)
            codes[0] = 0
        except SystemExit as end:
            codes[0] = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()

    work_in_a_copy(run)
    return codes[0]
