"""Show the progress of a sweep: a line for each configuration, on a terminal also a live one for what runs now."""

import sys
import time
from types import TracebackType

import click

from ftkit.records.schema import RunRecord
from ftkit.sweep.axes import Trial
from ftkit.units import format_bytes, format_seconds


class SweepProgress:
    """Shows a sweep to a person; on standard error, so that what is piped on is the result alone."""

    def __init__(self, num_trials: int, *, is_quiet: bool) -> None:
        """Begin.

        Args:
            num_trials: of the sweep.
            is_quiet: show nothing but notes.
        """
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._num_trials, self._is_quiet = num_trials, is_quiet
        self._started, self._num_run, self._number = time.perf_counter(), 0, 0
        console = Console(stderr=True)
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=is_quiet or not console.is_terminal)
        self._task = self._bar.add_task("starting", total=num_trials)

    def __enter__(self) -> None:
        """Open the live line."""
        self._bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it, and where the sweep was stopped say how it goes on."""
        self._bar.stop()
        if isinstance(error, KeyboardInterrupt):
            done = f"{self._number} of {self._num_trials}"
            click.echo(f"stopped after {done} configurations; the same command goes on from there", err=True)
            sys.exit(130)

    def begin(self, trial: Trial) -> None:
        """Show that a trial runs."""
        self._bar.update(self._task, description=f"{trial.name}, {self._left()}")

    def end(self, trial: Trial, record: RunRecord, *, was_done: bool) -> None:
        """Show what came of it."""
        self._number += 1
        self._num_run += not was_done
        self._bar.update(self._task, completed=self._number)
        if not self._is_quiet:
            aside = "done before" if was_done else self._left()
            self._say(f"[{self._number}/{self._num_trials}] {trial.name}: {_words(record)} ({aside})")

    def note(self, text: str) -> None:
        """Say something that matters even to a quiet user."""
        self._say(text)

    def _left(self) -> str:
        if self._number == self._num_trials:
            return f"{format_seconds(time.perf_counter() - self._started)} in all"
        if not self._num_run:
            return "the first takes longest"
        each = (time.perf_counter() - self._started) / self._num_run
        return f"about {format_seconds(each * (self._num_trials - self._number))} left"

    def _say(self, text: str) -> None:
        if self._bar.disable:
            click.echo(text, err=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _words(record: RunRecord) -> str:
    result = record.result
    if result is None or result.status == "failed":
        return f"{result.failure}: {result.reason}" if result else "unfinished"
    measured, predicted = result.measurement, record.run.prediction
    parts = []
    if measured.peak_active_bytes is not None:
        parts.append(format_bytes(measured.peak_active_bytes))
    if measured.tokens_per_second is not None:
        parts.append(f"{measured.tokens_per_second:,.0f} tokens/s")
    if predicted and predicted.peak_active_bytes and measured.peak_active_bytes:
        error = predicted.peak_active_bytes / measured.peak_active_bytes - 1
        parts.append(f"predicted {error * 100:+.2f} %" if error else "predicted to the byte")
    return ", ".join(parts) or "completed"
