"""Turn a signal that asks a run to stop into an end that loses nothing.

A job scheduler sends SIGTERM or SIGUSR1 some time before it kills; a user presses Ctrl-C. While a run trains, the
handler only takes a note. The loop reads the note between two micro-batches (one rank) or two steps (several ranks,
which have to stop at the same one), writes a checkpoint and ends with the exit code of `InterruptedRunError`, which
means "the same command with --resume goes on". A second SIGINT ends at once, for a user who does not want to wait.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ftkit.errors import InterruptedRunError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Remembers whether this process was asked to stop.

    Attributes:
        name: of the first signal that came, such as `SIGTERM`; None while nobody asked.
    """

    def __init__(self) -> None:
        """Listen to nothing yet; see `listening`."""
        self.name: str | None = None
        self._is_deferred = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle the signals while the block runs: the first one raises, or inside `deferred` is noted.

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
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Take a note of a signal instead of raising while the block runs."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # the signature of a handler
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name
        if not self._is_deferred:
            raise InterruptedRunError(f"stopped by {self.name} before the first step; there is nothing to resume")
