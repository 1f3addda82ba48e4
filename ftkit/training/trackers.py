"""Sends a run's figures to experiment trackers; the only importer of accelerate, whose tracker classes do it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from ftkit.config.files import flat
from ftkit.config.output import Tracker
from ftkit.errors import DependencyError
from ftkit.records.schema import EvaluationLine, RunLine, RunRecord, StepLine

_PROJECT = "ftkit"
_NOT_FIGURES = {"kind", "step", "epoch", "split", "confusion"}


def check_trackers(names: Sequence[Tracker]) -> None:
    """See that trackers can be used, before anything trains.

    Args:
        names: of trackers.

    Raises:
        DependencyError: the package of one is not installed.
    """
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in available:
            raise DependencyError(f"--tracker {name} needs its package, which is not installed: pip install {name}")


class TrackerReporter:
    """Tells trackers what happens in a run: figures under `train/`, and under the name of each split."""

    def __init__(self, names: Sequence[Tracker]) -> None:
        """Track with all of them; see `check_trackers`."""
        self._names = names
        self._trackers: list[Any] = []

    def note(self, text: str) -> None:
        """Do nothing: trackers take figures."""

    def start(self, run: RunLine, folder: Path) -> None:
        """Open the trackers and give them the configuration."""
        for name in self._names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            needs_folder = kind.requires_logging_directory
            tracker = kind(
                run.name if needs_folder else _PROJECT, *([str(folder / "tracking")] if needs_folder else [])
            )
            tracker.start()
            tracker.store_init_configuration({key: _plain(value) for key, value in flat(run.config).items()})
            self._trackers.append(tracker)

    def advance(self, step: int) -> None:
        """Do nothing: a step that is not logged has no figures."""

    def step(self, line: StepLine, peak_bytes: int | None) -> None:
        """Send the figures of a step."""
        figures = _figures("train", line)
        if peak_bytes is not None:
            figures["train/peak_bytes"] = peak_bytes
        self._log(figures, line.step)

    def evaluation(self, line: EvaluationLine) -> None:
        """Send scores."""
        self._log(_figures(line.split, line), line.step)

    def finish(self, record: RunRecord, folder: Path) -> None:  # noqa: ARG002  # a Reporter is told it
        """Send the run's own measurement, and close."""
        result = record.result
        if result is not None:
            self._log(_figures("run", result.measurement), result.num_steps)
        self.close()

    def close(self) -> None:
        """Close what is open."""
        while self._trackers:
            self._trackers.pop().finish()

    def _log(self, figures: dict[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(figures, step=step)


def _figures(prefix: str, line: Any) -> dict[str, float]:
    values = line.model_dump().items()
    return {
        f"{prefix}/{name}": value
        for name, value in values
        if name not in _NOT_FIGURES and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _plain(value: Any) -> Any:
    """Return what every tracker takes: a number, a boolean or a text."""
    return value if isinstance(value, bool | int | float | str) else str(value)
