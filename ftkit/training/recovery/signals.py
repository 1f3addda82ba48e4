"""Turn a signal that asks a run to stop into an end that loses nothing.

A job scheduler sends SIGTERM or SIGUSR1 some time before it kills; a user presses Ctrl-C. While a run trains, the
handler only takes a note. The loop reads the note between two micro-batches (one rank) or two steps (several ranks,
which have to stop at the same one), writes a checkpoint and ends with the exit code of `InterruptedRunError`, which
means "the same command with --resume goes on". A second SIGINT ends at once, for a user who does not want to wait.
A launcher that ends before its ranks do counts as a signal to each of them.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType

from ftkit.errors import InterruptedRunError
from ftkit.machine.launcher import watched

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopNow(Exception):  # noqa: N818  # it reports a wish, not an error
    """The run is to stop here and save; nothing of what was going on is kept."""


class Work(Enum):
    """The activity of a run, as far as it decides what a signal does."""

    SETUP = "setup"
    """There is nothing to save: the run ends at once."""
    CHANGING = "changing"
    """Weights, sums of gradients or files are being changed: the signal is noted."""
    READING = "reading"
    """Nothing is changed, as in an evaluation: the work is dropped, and the run saves where it stands."""


class StopRequest:
    """Remembers whether this process was asked to stop.

    Attributes:
        name: of the first signal that came, such as `SIGTERM`; None while nobody asked.
    """

    def __init__(self, *, is_alone: bool, launchers: tuple[int, ...] = ()) -> None:
        """Listen to nothing yet; see `listening`.

        Args:
            is_alone: whether no other rank waits for this process, so that it may drop what it is reading.
            launchers: processes without which this one is not to train on.
        """
        self.name: str | None = None
        self.is_alone = is_alone
        self._launchers = launchers
        self._work = Work.SETUP

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle the signals while the block runs.

        Outside the main thread Python lets nobody handle signals, and the block runs as if there were none.

        Yields:
            This request.

        Raises:
            InterruptedRunError: a signal came while there was nothing to save.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            with watched(self._launchers, self._note_orphaned):
                yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def during(self, work: Work) -> Iterator[None]:
        """Say what the run does while the block runs.

        Args:
            work: decides what a signal does.

        Raises:
            StopNow: a signal came, or had come before, and the work may be dropped.
        """
        before, self._work = self._work, work
        try:
            if self.name is not None and self._may_drop:
                raise StopNow
            yield
        finally:
            self._work = before

    @property
    def _may_drop(self) -> bool:
        return self._work is Work.READING and self.is_alone

    def _note_orphaned(self) -> None:
        """Run in the thread that watches; only the main thread may drop what it does, so a signal goes there."""
        self.name = self.name or "the end of its launcher"
        os.kill(os.getpid(), signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # the signature of a handler
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt("a checkpoint, if one was written, goes on with --resume FOLDER")
        self.name = self.name or signal.Signals(number).name
        if self._work is Work.SETUP:
            raise InterruptedRunError(f"stopped by {self.name} before the first step; there is nothing to resume")
        if self._may_drop:
            raise StopNow
