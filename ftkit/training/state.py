"""The progress of a run, and the clock of the steps since the last line of its log."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import GlobalBatch
from ftkit.report.metrics import METRICS


@dataclass
class Progress:
    """The progress of a run; the only thing here that changes."""

    started: float
    """When this process had its libraries and began with the run, by `time.perf_counter`."""
    earlier_seconds: float = 0.0
    """What earlier processes of the run took, up to the checkpoint that it went on from."""
    step: int = 0
    epoch: float = 0.0
    validations: dict[int, float | None] = field(default_factory=dict)
    """Step to the figure that decides which weights are kept; None where it was not finite."""
    train_seconds: float = 0.0
    """Of all processes of the run, as are tokens and sequences."""
    num_tokens: int = 0
    num_samples: int = 0
    owes_validation: bool = False
    setup_seconds: float = 0.0
    """What this process took before its first step, the trial step included."""
    step_seconds: list[float] = field(default_factory=list)
    """Of each step that this process took."""

    @property
    def total_seconds(self) -> float:
        """The seconds that the run has taken so far, loading and evaluations included."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def begin_steps(self) -> None:
        """Note that the first step comes now."""
        self.setup_seconds = time.perf_counter() - self.started

    def times(self) -> dict[str, Any]:
        """Return the seconds of a `ResultLine`."""
        names = ("train_seconds", "total_seconds", "setup_seconds")
        return {name: getattr(self, name) for name in names}

    def speed(self) -> dict[str, Any]:
        """Return the figures of a `Measurement` that time gives: rates over the whole run, steps as they are here."""
        rates, timed = {}, self.step_seconds
        if self.num_tokens and self.train_seconds:
            rates["tokens_per_second"] = self.num_tokens / self.train_seconds
            rates["samples_per_second"] = self.num_samples / self.train_seconds
        if not timed:  # no step was left to take
            return rates
        return rates | {
            "step_seconds": float(np.median(timed)),
            "step_seconds_spread": float(np.subtract(*np.percentile(timed, [75, 25]))),
            "num_timed_steps": len(timed),
        }


def best_steps(validations: Mapping[int, float | None], metric: str) -> tuple[int, ...]:
    """Return the steps of validations whose figure is finite, the best first; of equal ones the earlier.

    Args:
        validations: step to figure.
        metric: the name of the figure.
    """
    values = {step: value for step, value in validations.items() if value is not None}
    sign = METRICS[metric].sign
    return tuple(sorted(values, key=lambda step: (sign * values[step], step)))


def best_step(validations: Mapping[int, float | None], metric: str) -> int | None:
    """Return the step of the best validation, or None where there is none; see `best_steps`."""
    return next(iter(best_steps(validations, metric)), None)


def num_without_improvement(validations: Mapping[int, float | None], metric: str) -> int:
    """Return the number of validations since the best; all of them where none was finite.

    Args:
        validations: step to figure.
        metric: the name of the figure.
    """
    best = best_step(validations, metric)
    return len(validations) if best is None else sum(step > best for step in validations)


class Window:
    """The steps since the last line of the log: their time and their tokens."""

    def __init__(self) -> None:
        """Start at this moment."""
        self._begin()

    def _begin(self) -> None:
        self.started, self.num_steps, self.num_tokens, self.num_samples = time.perf_counter(), 0, 0, 0

    def add(self, split: TokenSplit, batch: GlobalBatch) -> None:
        """Count a step."""
        self.num_steps += 1
        self.num_tokens += int(split.lengths[split.rows_of(batch.indices)].sum())
        self.num_samples += len(batch.indices)

    def pause(self, progress: Progress) -> None:
        """Add what passed to the progress, if anything did, before something else than steps takes time."""
        if self.num_steps:
            self.close(progress)

    def close(self, progress: Progress) -> tuple[float, float]:
        """Add what passed to the progress; return seconds per step and tokens per second."""
        seconds = time.perf_counter() - self.started
        progress.train_seconds += seconds
        progress.step_seconds += [seconds / self.num_steps] * self.num_steps
        progress.num_tokens += self.num_tokens
        progress.num_samples += self.num_samples
        rates = seconds / self.num_steps, self.num_tokens / seconds
        self._begin()
        return rates
