"""The files of a result folder: their names, and the record written and read line by line."""

import json
import shlex
import warnings
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from ftkit.errors import DataError
from ftkit.records.figures import Record
from ftkit.records.schema import (
    LINE,
    SCHEMA_VERSION,
    AnyLine,
    EvaluationLine,
    RecoveryLine,
    ResultLine,
    RunLine,
    RunRecord,
    StepLine,
    TimelineLine,
)

RECORD, CONFIG, CHECKPOINTS, MODEL, CARD = "record.jsonl", "config.yaml", "checkpoints", "model", "README.md"
PAGE = "report.html"
CHECKPOINT_BYTES = 12
"""Bytes of a checkpoint for each number that trains: a master and two moments, in fp32."""
LIMITS, RANKS = "limits.json", "ranks"
"""The limits that fitted after memory ran out; the last sign of life of each rank."""
SNAPSHOT = "memory_snapshot_rank{rank}.pickle"


def resume_flag(folder: Path) -> str:
    """Return the flag that goes on with the run of a folder, as a shell takes it."""
    return f"--resume {shlex.quote(str(folder))}"


class RecordWriter:
    """Append lines to a record as they happen, each flushed whole; a line that fails can be written again."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending; its folder exists. A last line that was not written whole is ended."""
        self._path = path
        self._file = self._open()
        self._size = path.stat().st_size
        self._file.seek(max(self._size - 1, 0))
        if self._file.read() not in (b"", b"\n"):
            self._append(b"\n")

    def write(self, line: Record) -> None:
        """Append one line.

        Raises:
            OSError: the disk is full or gone. What was written of the line goes when the next one comes.
        """
        if self._file.closed:  # an open file of a disk that comes back is of no use
            self._file = self._open()
            self._file.truncate(self._size)
        try:
            self._append(line.model_dump_json().encode() + b"\n")
        except OSError:
            self._file.close()
            raise

    def _open(self) -> FileIO:
        return self._path.open("a+b", buffering=0)  # nothing is held back that a full disk would lose at the end

    def _append(self, data: bytes) -> None:
        rest = data
        while rest:
            rest = rest[self._file.write(rest) :]
        self._size += len(data)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_record(path: Path | str) -> RunRecord:
    """Read a record as far as it goes.

    A truncated or damaged line is left out, and an older schema's line is read for what it has; both with a warning
    that names file and line.

    Args:
        path: a `record.jsonl`, or the result folder that holds one.

    Returns:
        The lines, sorted into their kinds; of a resumed run, a step that was taken twice counts as it was last.

    Raises:
        DataError: there is no such file, or it has no `run` line.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"no record at {path}; give a result folder of ftkit, or its record.jsonl")
    run: RunLine | None = None
    steps: dict[int, StepLine] = {}
    evaluations: dict[tuple[int, str], EvaluationLine] = {}
    timeline: TimelineLine | None = None
    recoveries: list[RecoveryLine] = []
    result: ResultLine | None = None
    for line in _lines(path):
        match line:
            case RunLine():
                run, result = line, None  # whatever ended before goes on
            case StepLine():
                steps[line.step] = line
            case EvaluationLine():
                evaluations[line.step, line.split] = line
            case TimelineLine():
                timeline = line
            case RecoveryLine():
                recoveries.append(line)
            case ResultLine():
                result = line
    if run is None:
        raise DataError(f"{path} has no line of kind 'run'; it is not a record of ftkit, or its first line was lost")
    return RunRecord(
        run=run,
        steps=tuple(steps.values()),
        evaluations=tuple(evaluations.values()),
        timeline=timeline,
        recoveries=tuple(recoveries),
        result=result,
    )


def _lines(path: Path) -> Iterator[AnyLine]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, start=1):
            try:
                raw: object = json.loads(text)
                yield _known_line(raw, f"{path}:{number}")
            except (json.JSONDecodeError, ValidationError) as error:
                reason = str(error).splitlines()[0]
                _warn(f"{path}:{number}: this line is not read ({reason})")


def _known_line(raw: object, place: str) -> AnyLine:
    """Read a line; of another schema, without the fields that do not fit.

    Args:
        raw: the parsed JSON.
        place: file and line, for the warning.

    Returns:
        The line.

    Raises:
        ValidationError: what every line of its kind must have is not there.
    """
    if not isinstance(raw, dict):
        return LINE.validate_python(raw)
    version = raw.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        _warn(f"{place}: schema {version}, and this is schema {SCHEMA_VERSION}; it is read as far as it goes")
    try:
        return LINE.validate_python(raw)
    except ValidationError as error:
        # A place is (kind, field, ...); a missing field names itself and cannot be left out.
        unfit = {str(problem["loc"][1]) for problem in error.errors() if len(problem["loc"]) > 1}
        kept = {key: value for key, value in raw.items() if key not in unfit}
        line = LINE.validate_python(kept)
        _warn(f"{place}: left out {', '.join(sorted(unfit))}, which cannot be read")
        return line


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)
