"""Answers as they are written: CSV, JSON lines or Parquet, a part at a time."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from ftkit.errors import ConfigError
from ftkit.inference.predict import Answered
from ftkit.machine.disk import UNFINISHED

Row = dict[str, Any]


class Writer(Protocol):
    """Writes rows of the same columns."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write some rows."""


def rows_of(answered: Answered, names: Sequence[str]) -> list[Row]:
    """Return the columns of each text: where it stood, the text, its label, and the probability of each class.

    Args:
        answered: some answers.
        names: of the classes or labels, or of the number.
    """
    rows = []
    for place, (texts, answer) in enumerate(zip(answered.texts, answered.answers, strict=True)):
        row: Row = {"row": answered.places[place], "text": texts[0]}
        row |= {"text_pair": texts[1]} if len(texts) > 1 else {}
        row["label"] = answer
        if answered.probabilities is not None:
            row |= dict(zip(probability_names(names), answered.probabilities[place].tolist(), strict=True))
        rows.append(row)
    return rows


def probability_names(names: Iterable[str]) -> list[str]:
    """Return the columns of the probabilities."""
    return [f"probability_{name}" for name in names]


@contextmanager
def opened_output(path: Path | None, form: str, stream: TextIO) -> Iterator[Writer]:
    """Open what answers are written to.

    Args:
        path: a file, which gets its name when it is whole; None: `stream`.
        form: `csv`, `jsonl` or `parquet`.
        stream: standard output.

    Yields:
        What writes them.

    Raises:
        ConfigError: the file cannot be written, or Parquet has no file.
    """
    if path is None:
        if form == "parquet":
            raise ConfigError("Parquet is not text; name a file with --output FILE.parquet")
        yield _TextWriter(stream, form)
        return
    aside = path.with_name(f"{path.name}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(aside, form) as writer:
            yield writer
        aside.replace(path)
    except OSError as error:
        told = error.strerror or error
        raise ConfigError(f"cannot write {path}: {told}; name another file with --output") from None
    finally:
        with suppress(OSError):  # where the file could not be made, its folder may not let it be looked for either
            aside.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path, form: str) -> Iterator[Writer]:
    if form == "parquet":
        with closing(_ParquetWriter(path)) as writer:
            yield writer
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            yield _TextWriter(stream, form)


class _TextWriter:
    def __init__(self, stream: TextIO, form: str) -> None:
        self._stream, self._form, self._has_head = stream, form, False

    def write(self, rows: Sequence[Row]) -> None:
        if self._form == "jsonl":
            self._stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        part = StringIO()
        writer = csv.DictWriter(part, list(rows[0]), lineterminator="\n")
        if not self._has_head:
            writer.writeheader()
            self._has_head = True
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        self._stream.write(part.getvalue())


class _ParquetWriter:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, rows: Sequence[Row]) -> None:
        table = pa.Table.from_pylist(list(rows), schema=None if self._writer is None else self._writer.schema)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)


def _cell(value: Any) -> Any:
    """Return what a cell of CSV holds: several labels as a JSON list."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
