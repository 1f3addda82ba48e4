"""JSON files to rows: an array of objects, or one object a line, each with the line it begins at."""

import json
import math
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ftkit.data.reading.decoding import text_lines, utf8_blocks
from ftkit.data.reading.shards import Shard
from ftkit.data.reading.values import kind_of, table_of_rows
from ftkit.errors import DataError

Row = dict[str, Any]
_SPACE = re.compile(r"[ \t\r\n]*")
_ENTRY_END = b"}"  # an array may be one line; where a part of it is an object within, or in a text, the next part helps


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
        path: the file, of which an array is held an entry at a time, and a part of the file behind it.
        encoding: of the file.

    Returns:
        Its rows, with the lines they begin at.

    Raises:
        DataError: what is not JSON, or not rows, with its line.
    """
    parts = utf8_blocks(path, encoding, _ENTRY_END)
    first = next((start for part in parts if (start := part.lstrip()[:1])), b"")
    if first != b"[":
        return read_json_lines(path, encoding)
    return _shard(path, _rows_of_array(_ArrayText(path, utf8_blocks(path, encoding, _ENTRY_END))))


def _shard(path: Path, numbered: Iterable[tuple[int, Row]]) -> Shard:
    places = array("q")

    def rows() -> Iterator[Row]:
        for line, row in numbered:
            places.append(line)
            yield row

    table = table_of_rows(rows(), lambda row: f"{path}: line {places[row]}")
    return Shard(str(path), table, unit="line", places=np.asarray(places, dtype=np.int64))


def _rows_of_lines(path: Path, encoding: str) -> Iterator[tuple[int, Row]]:
    for line, ended in enumerate(text_lines(path, encoding), 1):
        text = ended.removesuffix("\n")
        if text.strip():
            start = _behind_space(text, 0)
            row, end = _parsed(path, line, text, start)
            if _behind_space(text, end) < len(text):
                raise DataError(f"{path}: line {line} goes on after its object; write one object a line")
            yield line, row


def _rows_of_array(text: "_ArrayText") -> Iterator[tuple[int, Row]]:
    """Parse an array entry by entry, so that each has its line."""
    text.sign()
    text.advance(1)
    while text.sign() != "]":
        line = text.line
        yield line, text.row()
        if text.sign() not in (",", "]"):
            raise DataError(f"{text.path}: line {text.line} lacks the ',' or ']' that follows a row; correct that line")
        text.advance(text.sign() == ",")
    text.advance(1)
    if text.sign():
        raise DataError(f"{text.path} goes on after its array; write one array of objects, or one object a line")


@dataclass
class _ArrayText:
    """The text of an array from the place on that is parsed next; more of the file is read as it is needed.

    Attributes:
        path: the file.
        parts: what is to be read, in UTF-8.
        held: what has been read and may not be parsed.
        place: of what is parsed next, in `held`.
        line: its line.
    """

    path: Path
    parts: Iterator[bytes]
    held: str = ""
    place: int = 0
    line: int = 1

    def sign(self) -> str:
        """Return the next character that is not a space, and go to it; none at the end."""
        while True:
            self.advance(_behind_space(self.held, self.place) - self.place)
            if self.place < len(self.held) or not self._read_on():
                return self.held[self.place : self.place + 1]

    def advance(self, num_characters: int) -> None:
        """Go on by some characters."""
        end = self.place + num_characters
        self.line += self.held.count("\n", self.place, end)
        self.place = end

    def row(self) -> Row:
        """Parse the object that comes next, and go behind it."""
        while True:
            try:
                row, end = _parsed(self.path, self.line, self.held, self.place)
            except _UnendedError:
                if not self._read_on():
                    raise
            else:
                self.advance(end - self.place)
                return row

    def _read_on(self) -> bool:
        """Read as much as is held, so that a long entry is parsed anew a few times alone; False at the end."""
        rest = self.held[self.place :]
        read, size = [rest], 0
        while size <= len(rest) and (part := next(self.parts, b"")):
            read.append(part.decode())
            size += len(read[-1])
        self.held, self.place = "".join(read), 0
        return size > 0


class _UnendedError(DataError):
    """The text ends within an object."""


def _parsed(path: Path, line: int, text: str, place: int) -> tuple[Row, int]:
    """Parse one object that begins at a place; return it and the place behind it."""
    try:
        row, end = _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        is_unended = error.pos >= len(text) - 1 or error.msg.startswith("Unterminated string")
        line += text.count("\n", place, error.pos)
        kind = _UnendedError if is_unended else DataError
        raise kind(
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
