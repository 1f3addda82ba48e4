"""Show a training run: a live line on a terminal, plain lines elsewhere, a summary at the end."""

import shlex
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ftkit.records.files import CARD, MODEL, RECORD, resume_flag
from ftkit.records.schema import EvaluationLine, RunLine, RunRecord, StepLine
from ftkit.report.words import distribution
from ftkit.training.results.card import score_words
from ftkit.training.results.folder import summary_rows
from ftkit.units import counted, format_bytes, format_count, format_seconds


class Reporter(Protocol):
    """The interface that is told what happens, on the first rank."""

    def note(self, text: str) -> None:
        """Say something."""

    def start(self, run: RunLine, folder: Path) -> None:
        """Training begins."""

    def advance(self, step: int) -> None:
        """A step was taken; its figures have not been read."""

    def step(self, line: StepLine, peak_bytes: int | None) -> None:
        """A step was logged."""

    def evaluation(self, line: EvaluationLine) -> None:
        """A split was scored."""

    def finish(self, record: RunRecord, folder: Path) -> None:
        """The run is over."""


class _TimeLeft(TimeRemainingColumn):
    """Counts down to the end that the last logged step told; before it, goes by the steps alone."""

    def render(self, task: Task) -> Text:
        """Return the time left."""
        ends = task.fields["ends"]
        if ends is None:
            return super().render(task)
        left = timedelta(seconds=max(0, round(ends - time.monotonic())))
        return Text(str(left), style="progress.remaining")


class ConsoleReporter:
    """Shows a run to a person."""

    def __init__(self, console: Console) -> None:
        """Show on `console`; live only if it is a terminal."""
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._num_steps = 0
        self.folder: Path | None = None
        """The result folder, once the run is over."""

    def note(self, text: str) -> None:
        """Say something."""
        style = "yellow" if text.startswith("warning") else "dim"
        self._console.print(escape(text), style=style, soft_wrap=True)

    def start(self, run: RunLine, folder: Path) -> None:  # noqa: ARG002  # the end of the run names it
        """Show what trains, and open the live line."""
        self._num_steps = run.num_steps
        method, engine = run.config["method"]["name"], distribution(run)
        self._console.print(
            f"[bold]{escape(method)}[/] on {run.world_size} x {escape(run.device)}, "
            f"{engine}{' engine' if engine == 'plain' else ''}, "
            f"{run.precision}, {counted(run.num_steps, 'step')} of "
            f"{counted(run.config['batch']['global_batch_size'], 'sequence')}"
        )
        if self._console.is_terminal:
            columns = (
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                _TimeLeft(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=run.num_steps, figures="starting", ends=None)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Move the live line on, which else would stand still between two steps that are logged."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def step(self, line: StepLine, peak_bytes: int | None) -> None:
        """Show a logged step."""
        figures = (
            f"loss {line.loss:.4f}  lr {line.learning_rate:.2e}  {format_count(line.tokens_per_second)} tokens/s  "
            f"{'' if peak_bytes is None else f'peak {format_bytes(peak_bytes)}'}"
        )
        left = line.seconds_left or 0.0
        if self._bar is not None:
            self._bar.update(self._task, completed=line.step, figures=figures, ends=time.monotonic() + left)
            return
        self._console.print(
            f"step {line.step}/{self._num_steps}  {figures}  {format_seconds(left)} left",
            highlight=False,
            soft_wrap=True,
        )

    def evaluation(self, line: EvaluationLine) -> None:
        """Show scores."""
        cells = [f"{_lowered(heading)} {figure}" for heading, figure in score_words(line).items()]
        self._console.print(
            f"[bold]{line.split}[/] at step {line.step}: {'  '.join(cells)}  ({format_seconds(line.seconds)})",
            highlight=False,
            soft_wrap=True,
        )

    def finish(self, record: RunRecord, folder: Path) -> None:
        """Show the summary: figures, where things are, what to do next."""
        self.close()
        self.folder = folder
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, text in summary_rows(record):
            table.add_row(name, text)
        self._console.print(table)
        for name, what in ((MODEL, "the model"), (RECORD, "all figures"), (CARD, "the model card")):
            self._console.print(f"{what}: {folder / name}", highlight=False, soft_wrap=True)
        for line in _next(record, folder):
            self._console.print(f"next: {line}", highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Remove the live line, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _next(record: RunRecord, folder: Path) -> list[str]:
    """Return what may be done with a run that is over, and how to go on where it was still getting better."""
    run = shlex.quote(str(folder))
    is_language_model = record.run.config["task"] == "causal-lm"
    ask = f"ftkit chat {run} talks to it" if is_language_model else f"ftkit predict {run} 'a text' answers"
    lines = [f"{ask}; ftkit report {run} OTHER sets it beside another run"]
    validated = [line.step for line in record.evaluations if line.split == "validation"]
    training = record.run.config["training"]
    if len(validated) > 1 and record.result is not None and record.result.best_step == validated[-1]:
        longer = f"--epochs {2 * training['epochs']:g}" if training["max_steps"] is None else ""
        longer = longer or f"--max-steps {2 * training['max_steps']}"
        lines.append(
            f"the last of {len(validated)} validations was the best; ftkit train {resume_flag(folder)} {longer} goes on"
        )
    return lines


def _lowered(heading: str) -> str:
    """Return a heading within a line: `F1 macro` as `f1 macro`, an abbreviation such as `MAE` as it is."""
    return heading if heading.isupper() else heading.lower()


class Reporters:
    """Several reporters as one."""

    def __init__(self, *reporters: Any) -> None:
        """Tell all of them, in this order."""
        self._reporters = reporters

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Return what tells each reporter the same."""

        def tell(*what: Any) -> None:
            for reporter in self._reporters:
                getattr(reporter, name)(*what)

        return tell
