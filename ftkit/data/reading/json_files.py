"""JSON files to rows: an array of objects, or one object a line, each with the line it begins at."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ftkit.data.reading.decoding import text_lines
from ftkit.data.reading.shards import Shard
from ftkit.data.reading.values import kind_of, table_of_rows
from ftkit.errors import DataError

Row = dict[str, Any]
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json_lines(path: Path, encoding: str) -> Shard:
    """Read one object a line; blank lines are skipped.

    Args:
        path: the file.
        encoding: of the file.

    Returns:
        Its rows, with their lines.

    Raises:
        DataError: a line that is not an object, with its number.
    """
    return _shard(path, _rows_of_lines(path, encoding))


def read_json(path: Path, encoding: str) -> Shard:
    """Read an array of objects; a file of one object a line is JSONL whatever its suffix.

    Args:
        path: the file, which is held whole where it is an array.
        encoding: of the file.

    Returns:
        Its rows, with the lines they begin at.

    Raises:
        DataError: what is not JSON, or not rows, with its line.
    """
    first = next((line for line in text_lines(path, encoding) if line.strip()), "")
    if not first.lstrip().startswith("["):
        return read_json_lines(path, encoding)
    return _shard(path, _rows_of_array(path, "".join(text_lines(path, encoding))))


def _shard(path: Path, numbered: Iterable[tuple[int, Row]]) -> Shard:
    places: list[int] = []

    def rows() -> Iterator[Row]:
        for line, row in numbered:
            places.append(line)
            yield row

    table = table_of_rows(rows(), lambda row: f"{path}: line {places[row]}")
    return Shard(str(path), table, unit="line", places=np.array(places, dtype=np.int64))


def _rows_of_lines(path: Path, encoding: str) -> Iterator[tuple[int, Row]]:
    for line, ended in enumerate(text_lines(path, encoding), 1):
        text = ended.removesuffix("\n")
        if text.strip():
            start = _behind_space(text, 0)
            row, end = _parsed(path, line, text, start)
            if _behind_space(text, end) < len(text):
                raise DataError(f"{path}: line {line} goes on after its object; write one object a line")
            yield line, row


def _rows_of_array(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    """Parse an array entry by entry, so that each has its line."""
    place = _behind_space(text, 0) + 1
    line, counted = 1, 0
    while not text.startswith("]", place := _behind_space(text, place)):
        line, counted = line + text.count("\n", counted, place), place
        row, place = _parsed(path, line, text, place)
        yield line, row
        place = _behind_space(text, place)
        if not text.startswith((",", "]"), place):
            line += text.count("\n", counted, place)
            raise DataError(f"{path}: line {line} lacks the ',' or ']' that follows a row; correct that line")
        place += text[place] == ","
    if _behind_space(text, place + 1) < len(text):
        raise DataError(f"{path} goes on after its array; write one array of objects, or one object a line")


def _parsed(path: Path, line: int, text: str, place: int) -> tuple[Row, int]:
    """Parse one object that begins at a place; return it and the place behind it."""
    try:
        row, end = _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        line += text.count("\n", place, error.pos)
        raise DataError(
            f"{path}: line {line} is not valid JSON ({error.msg}); write an array of objects, or one object a line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: line {line} cannot be kept ({error}); correct that line") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {line} is {kind_of(row)}; write every row as an object of columns")
    return row, end


def _behind_space(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing too


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """Make an object; Python's own reader would keep the last of two equal keys without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return made


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is beyond the numbers that can be kept")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number)
