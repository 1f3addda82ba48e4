"""Run a training in a process of its own, and look at its validations while it runs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from ftkit.config.files import dump_config
from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError, DeviceError
from ftkit.records.schema import RunRecord
from ftkit.sweep.sweep import OUTPUT, explain_failure, record_of

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 60.0
"""What a run that is stopped gets to save what it has."""

Watch = Callable[[Sequence[float]], str | None]
"""Told of the validations so far; says why the run is to be stopped, None where it goes on."""

Start = Callable[[Path, Path], BaseProcess]
"""Starts the training of a configuration file, with a file for what it prints."""


@dataclass(frozen=True)
class Attended:
    """How a training ended.

    Attributes:
        values: the figure of its validations, in their order.
        seconds: that it took.
        stopped: why it was stopped; None where it ended by itself.
        failure: why it failed; None where it did not.
        record: its record, as far as it goes.
    """

    values: list[float]
    seconds: float
    stopped: str | None
    failure: str | None
    record: RunRecord | None


def attend(config: RunConfig, place: Path, metric: str, start: Start, watch: Watch) -> Attended:
    """Run one training to its end, or until `watch` says that it is enough.

    Args:
        config: the run; its folder is `place`, where what it prints is kept too.
        place: the result folder.
        metric: the figure of the validations that is looked at.
        start: starts it.
        watch: asked after each look, twice a second; a run whose steps are all validated goes on whatever it says.

    Returns:
        How it ended. A run that was stopped has saved a checkpoint.

    Raises:
        ConfigError: the folder cannot be written.
        DeviceError: the system starts no process.
    """
    file, started = place / "asked.yaml", time.monotonic()
    try:
        place.mkdir(parents=True, exist_ok=True)
        file.write_text(dump_config(config), encoding="utf-8")
        (place / OUTPUT).touch()
    except OSError as error:
        raise ConfigError(f"cannot write to {place}: {error.strerror}; name another folder with --output") from None
    stopped, process = None, _started(start, file, place / OUTPUT)
    try:
        while process.is_alive() and stopped is None:
            process.join(_POLL_SECONDS)
            record = record_of(place)
            reason = watch(values_of(record, metric))
            # Nothing is saved by stopping what has ended, or has nothing left but to be saved.
            stopped = reason if process.is_alive() and not _is_validated(record) else None
    finally:
        _end(process)
    record = record_of(place)
    values = values_of(record, metric)
    failure = None
    if stopped is None and process.exitcode:
        printed = (place / OUTPUT).read_text(encoding="utf-8", errors="replace")
        failure = explain_failure(process.exitcode, printed)[1]
    elif stopped is None and not values:
        failure = f"no validation has a {metric}"
    return Attended(values, time.monotonic() - started, stopped, failure, record)


def values_of(record: RunRecord | None, metric: str) -> list[float]:
    """Return a figure of each validation so far."""
    lines = record.evaluations if record else ()
    found = (getattr(line, metric) for line in lines if line.split == "validation")
    return [value for value in found if value is not None]


def _is_validated(record: RunRecord | None) -> bool:
    """Return whether a run has taken all of its steps, and validated the last one."""
    return record is not None and any(line.step == record.run.num_steps for line in record.evaluations)


def _started(start: Start, file: Path, output: Path) -> BaseProcess:
    try:
        return start(file, output)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "the process that it is copied from has ended"
        raise DeviceError(
            f"cannot start the training of {file}: {reason}; free memory or end other processes, and give the same "
            "command again, which goes on"
        ) from None


def _end(process: BaseProcess) -> None:
    """Ask a process to save and end; end it where it does not."""
    if process.is_alive():
        process.terminate()
        process.join(_GRACE_SECONDS)
    if process.is_alive():
        process.kill()
    process.join()
