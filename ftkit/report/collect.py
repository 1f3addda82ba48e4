"""Find the records below the folders that the user named."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ftkit.errors import DataError
from ftkit.records.answers import Answers, answers_file, read_answers
from ftkit.records.files import read_record
from ftkit.records.schema import Measurement, Prediction, RunRecord

RECORD_FILE = "record.jsonl"


@dataclass(frozen=True)
class Run:
    """A record and the name that tells it from the others.

    Attributes:
        name: the record's name, with the folders above it where several records share one.
        record: what is known of the run.
        folder: where its answers are; None: nowhere.
    """

    name: str
    record: RunRecord
    folder: Path | None = None

    @cached_property
    def answers(self) -> dict[str, Answers]:
        """The answers that the run kept, by split; a file that cannot be read is left out with a warning."""
        found: dict[str, Answers] = {}
        for split in ("validation", "test"):
            if self.folder is None or not (path := answers_file(self.folder, split)).is_file():
                continue
            try:
                found[split] = read_answers(path)
            except DataError as error:
                warnings.warn(str(error), stacklevel=2)
        return found

    @cached_property
    def measured(self) -> Measurement:
        """The measurement of the run; empty where it measured nothing."""
        result = self.record.result
        return result.measurement if result else Measurement()

    @cached_property
    def predicted(self) -> Prediction:
        """The prediction of the plan; empty where there was no plan.

        A plan is of the longest sequences, which a profile runs; of a training, the step is that over the lengths of
        its data, and all steps and the samples in a second follow it. Tokens in a second are the same over both.
        """
        planned = self.record.run.prediction or Prediction()
        job, num_steps = planned.job, planned.num_steps
        if self.record.run.purpose != "training" or job is None or job.steps_seconds is None or not num_steps:
            return planned
        step, samples = job.steps_seconds / num_steps, planned.samples_per_second
        if samples is not None and planned.step_seconds is not None:
            samples *= planned.step_seconds / step
        update = {"step_seconds": step, "samples_per_second": samples, "total_seconds": job.steps_seconds}
        return planned.model_copy(update=update)

    @property
    def is_baseline(self) -> bool:
        """Whether it trained no model: what it has no setting for tells it from nothing."""
        return self.record.run.purpose == "baseline"

    @property
    def status(self) -> str:
        """The end of the run: the kind of failure if it failed, `unfinished` if no end was written."""
        result = self.record.result
        if result is None:
            return "unfinished"
        return result.failure or result.status

    @property
    def reason(self) -> str | None:
        """Why it did not complete, where that is known."""
        return self.record.result.reason if self.record.result else None

    def setting(self, dotted: str) -> Any:
        """Return a value of the run's configuration such as `method.name`; None where an older schema had none."""
        node: Any = self.record.run.config
        for key in dotted.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return node


def collect_runs(paths: Iterable[Path]) -> list[Run]:
    """Read every record at or below the given paths.

    Args:
        paths: records, result folders, or folders of result folders such as a sweep's.

    Returns:
        The runs, oldest first, each under a name of its own.

    Raises:
        DataError: a path does not exist, or there is no record below any. Of several paths, which a shell may have
            found (runs/*), those without one are left out with a warning.
    """
    below = {path: _records_below(path) for path in paths}
    files: dict[Path, Path] = {}
    for records in below.values():
        for file in records:
            files.setdefault(file.resolve(), file)
    if not files:
        raise DataError(
            f"no {RECORD_FILE} in or below {', '.join(map(str, below))}; `ftkit train` and `ftkit profile` write them"
        )
    for path in (path for path, records in below.items() if not records):
        warnings.warn(f"{path} is left out: it holds no {RECORD_FILE}", stacklevel=2)
    found = sorted(((read_record(file), file) for file in files.values()), key=lambda pair: pair[0].run.started)
    names = [record.run.name for record, _ in found]
    return [
        Run(name if names.count(name) == 1 else _longer_name(file, name), record, file.parent)
        for name, (record, file) in zip(names, found, strict=True)
    ]


def _records_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == Path(RECORD_FILE).suffix else []
    if not path.is_dir():
        raise DataError(f"no run at {path}; give a result folder, a folder of them, or a {RECORD_FILE}")
    if (path / RECORD_FILE).is_file():
        return [path / RECORD_FILE]
    return sorted(path.rglob(RECORD_FILE))


def _longer_name(file: Path, name: str) -> str:
    folder = file.resolve().parent
    return f"{folder.parent.name}/{folder.name}" if folder.name == name else f"{name} ({folder.name})"
