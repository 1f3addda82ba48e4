"""Run many configurations, each in a process of its own; one that fails is a row with its reason."""

import contextlib
import os
import re
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ftkit.config.files import changed_values, dump_config
from ftkit.errors import ConfigError, DataError, DoesNotFitError
from ftkit.machine.disk import make_folder
from ftkit.machine.memory import says_no_memory
from ftkit.machine.process import says_peer_lost
from ftkit.records.files import RecordWriter, read_record
from ftkit.records.schema import Measurement, Prediction, ResultLine, RunLine, RunRecord
from ftkit.sweep.axes import Trial

RECORD, OUTPUT, CONFIG, PREDICTION = "record.jsonl", "output.txt", "config.yaml", "prediction.json"

Failure = Literal["out of memory", "crash", "time limit", "refused"]

_SAID = re.compile(r"error(?: on rank \d+)?: (.*)")
_ERROR = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception)\b")
_KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL, 256 - signal.SIGKILL}
"""How a process ends that the system's out-of-memory killer took; the last as a launcher passes it on."""


def _nothing(_: Trial) -> None:
    """Tell nobody."""


def _never(_: RunRecord) -> bool:
    return False


@dataclass(frozen=True)
class Runner:
    """The way in which the trials of a sweep are run.

    Attributes:
        command: a trial and its folder to the command line of its process.
        predict: a trial to what the plan says of it, or None.
        time_limit: seconds after which a trial is ended.
        begin: told of each trial that is about to run.
        is_stale: whether the record of an earlier run of the very configuration is to be made anew.
    """

    command: Callable[[Trial, Path], list[str]]
    predict: Callable[[Trial], Prediction | None]
    time_limit: float
    begin: Callable[[Trial], None] = _nothing
    is_stale: Callable[[RunRecord], bool] = _never


def run_sweep(trials: Iterable[Trial], folder: Path, runner: Runner) -> Iterator[tuple[Trial, RunRecord, bool]]:
    """Run each trial that has not been run yet.

    Args:
        trials: what to run.
        folder: gets a folder for each trial.
        runner: how.

    Yields:
        The trial, its record, and whether it had been run before.
    """
    for trial in trials:
        place = folder / trial.name
        earlier = record_of(place)
        if earlier and earlier.result and _is_of(earlier, trial) and not runner.is_stale(earlier):
            yield trial, earlier, True
        else:
            runner.begin(trial)
            yield trial, _run(trial, place, runner), False


def open_folder(trials: Iterable[Trial], folder: Path, *, overwrite: bool) -> None:
    """Make the folder of a sweep, or find it again.

    Args:
        trials: of the sweep.
        folder: of the sweep.
        overwrite: whether a trial may write over the record of another configuration.

    Raises:
        ConfigError: one would and may not, or the folder cannot be made.
    """
    for trial in () if overwrite else trials:
        earlier = record_of(folder / trial.name)
        if earlier and not _is_of(earlier, trial):
            raise ConfigError(
                f"{folder / trial.name} holds a measurement of another configuration; name another folder with "
                "--output, or measure again with --overwrite"
            )
    make_folder(folder, "name another folder with --output")


def record_of(place: Path) -> RunRecord | None:
    """Return the record of a run, which may still be writing it, however far it came; None before its first line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the last line of a run that writes or was stopped may be half of one
            return read_record(place)
    except (DataError, OSError):
        return None


def _is_of(record: RunRecord, trial: Trial) -> bool:
    is_same = changed_values(record.run.config) == changed_values(trial.asked())
    return is_same and record.run.world_size == trial.world_size


def _run(trial: Trial, place: Path, runner: Runner) -> RunRecord:
    place.mkdir(parents=True, exist_ok=True)
    for name in (RECORD, PREDICTION):
        (place / name).unlink(missing_ok=True)
    if trial.run is None:
        _write_failure(trial, place, None, "refused", str(trial.refusal))
        return read_record(place)
    (place / CONFIG).write_text(dump_config(trial.run.config), encoding="utf-8")
    prediction = runner.predict(trial)
    if prediction is not None:
        (place / PREDICTION).write_text(prediction.model_dump_json(), encoding="utf-8")
    failure = _attend(trial, runner.command(trial, place), place, runner.time_limit)
    if failure is not None:
        _write_failure(trial, place, prediction, *failure)
    return read_record(place)


def _attend(trial: Trial, command: list[str], place: Path, time_limit: float) -> tuple[Failure, str] | None:
    """Run a command to its end or its time; return the kind and the reason of its failure, or None."""
    environment = dict(os.environ)
    if trial.world_size > 1:  # the ranks of one machine share its cores
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // trial.world_size)))
    with (place / OUTPUT).open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        try:
            code = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            return "time limit", f"not done after {time_limit:g} s; ended"
        finally:
            _end_group(process)
    left = record_of(place)
    if code == 0 and left and left.result:
        return None
    return explain_failure(code, (place / OUTPUT).read_text(encoding="utf-8", errors="replace"))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def explain_failure(code: int, output: str) -> tuple[Failure, str]:
    """Say why a process failed.

    Args:
        code: what it exited with.
        output: what it wrote.

    Returns:
        The kind, and the sentence that says most.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in reversed(lines):
        if says_no_memory(line):
            return "out of memory", line[:300]
    causes = _causes(found[1] for line in lines if (found := _SAID.match(line)))
    if causes:
        kind: Failure = "out of memory" if code == DoesNotFitError.exit_code else "refused"
        return kind, causes[-1][:300]
    if code in _KILLED:
        return "out of memory", "killed by the system, as it does where memory runs out"
    errors = _causes(line for line in lines if _ERROR.match(line))
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = (errors or lines or [""])[-1][:300]
    return "crash", f"{how}: {last}" if last else how


def _causes(lines: Iterable[str]) -> list[str]:
    """Return the lines that say why, without those that only say that another rank is gone."""
    return [line for line in lines if not says_peer_lost(line)]


def _write_failure(trial: Trial, place: Path, prediction: Prediction | None, failure: Failure, reason: str) -> None:
    """End the record of a trial that could not end it itself."""
    is_begun = record_of(place) is not None
    end = ResultLine(
        status="failed", failure=failure, reason=reason, num_steps=0, train_seconds=0.0, total_seconds=0.0,
        measurement=Measurement(),
    )  # fmt: skip
    with RecordWriter(place / RECORD) as writer:
        if not is_begun:
            writer.write(_first_line(trial, prediction))
        writer.write(end)


def _first_line(trial: Trial, prediction: Prediction | None) -> RunLine:
    from ftkit.engine.first_line import first_line, refused_line

    if trial.run is None:
        return refused_line(trial.name, trial.asked(), trial.world_size, "profile")
    return first_line(trial.name, trial.run, "unknown", 0, prediction, "profile")
