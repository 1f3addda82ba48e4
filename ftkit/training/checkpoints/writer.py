"""Write in a thread what has been copied, while the steps go on."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread


class Writer:
    """Runs one write at a time in a thread; what it raises is raised again where the run next looks."""

    def __init__(self) -> None:
        """Have nothing to write."""
        self._written: Future[None] | None = None
        self._thread: Thread | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin a write when the one before it has ended, so that the host never holds more than one copy.

        Args:
            write: touches nothing that the run changes.

        Raises:
            Exception: what the write before raised.
        """
        self.wait()
        self._written = Future()
        # A daemon: who ends the process at once, by a second Ctrl-C, does not wait for it.
        self._thread = Thread(target=_run, args=(write, self._written), daemon=True, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise what a write raised that has ended; wait for none."""
        if self._written is not None and self._written.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the write that is going on, and raise what it raised."""
        written, self._written = self._written, None
        thread, self._thread = self._thread, None
        if written is None or thread is None:
            return
        try:
            written.result()
        finally:
            # It still drops what it wrote; a thread that does so while the interpreter ends aborts the process.
            thread.join()

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Wait at the end of the block, also where it raises, so that a copy that was being written is not lost.

        A second Ctrl-C does not wait.

        Raises:
            Exception: what the block or the last write raised; both, where both did.
        """
        try:
            yield
        except Exception as error:
            try:
                self.wait()
            except Exception as fault:
                raise fault from error
            raise
        self.wait()


def _run(write: Callable[[], None], written: Future[None]) -> None:
    """Run a write; its end, or what it raised, is kept for the run."""
    try:
        write()
    except BaseException as error:  # whatever it is, the run raises it again
        written.set_exception(error)
    else:
        written.set_result(None)
