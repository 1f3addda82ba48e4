"""Find the rows of a CSV or TSV file, and check that its quotes hold.

A field is quoted where a double quote is its first character; it ends at a quote that a separator or a line end
follows, and a quote inside it is written twice (RFC 4180). Readers differ in what they make of anything else, and most
make something of it: a stray quote swallows the rows up to the next one. So all quotes are looked at before a row is
read. Where they alternate between opening and closing, as in files that programs write, that takes a few operations of
NumPy over a block; only other blocks are walked quote by quote.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from ftkit.errors import DataError

_END, _LF, _CR, _SPACE, _QUOTE, _ESCAPE = b'\0\n\r "\\'  # zero bytes are refused before, so one can mark the end
_LINE_ENDS = {_LF: "LF", _CR: "CR", _CR + _LF: "CR LF"}
_LETTER = b"x"[0]
_ESCAPES = re.compile(rb'\\[\\"\r\n,;\t|]')  # what a backslash may take the meaning from, whatever the separator

Quotes = Literal["doubled", "backslash", "none"]
Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Dialect:
    """The dialect in which a file writes its columns.

    Attributes:
        separator: the one byte between two columns.
        quotes: how a quote is written inside a quoted field: twice, or behind a backslash; `none`: quotes are plain.
        is_stated: the user says so, and what looks like another dialect is text.
    """

    separator: str
    quotes: Quotes = "doubled"
    is_stated: bool = False


@dataclass(frozen=True)
class Layout:
    """The contents of a file, counted before it is read.

    Attributes:
        lines: int64 [rows, the header and blank lines included], the line that each begins in.
        is_blank: bool [the same], which of them are blank lines.
        num_quoted_ends: line ends inside quoted fields.
        longest: bytes of the longest row.
        escape_line: where every backslash stands before a character that it could take the meaning from, the line of
            the first one, else None.
    """

    lines: Places
    is_blank: NDArray[np.bool_]
    num_quoted_ends: int
    longest: int
    escape_line: int | None


def lay_out(path: Path, blocks: Iterable[bytes], dialect: Dialect, first_line: int) -> Layout:
    """Count the rows of a file.

    Args:
        path: the file, for errors.
        blocks: its content in UTF-8, whole lines each.
        dialect: how it writes its columns.
        first_line: the number of the line that the first block begins with.

    Returns:
        Where its rows begin.

    Raises:
        DataError: a quote that does not hold, or line ends of several kinds, with the line.
    """
    scan = _Scan(path, dialect, first_line, row_line=first_line)
    for block in blocks:
        scan.look_at(block)
    return scan.layout()


@dataclass
class _Scan:
    """The state at the beginning of a block.

    Attributes:
        line: the number of the line that the block begins with.
        row_line: the line at which the row begins that the block goes on with.
        row_bytes: its bytes in earlier blocks.
        is_inside: the block begins inside a quoted field.
        opened: the line of the quote that opened it.
        line_end: what ends the rows: the bytes of the line end, added.
        escape_line: the line of the first backslash, as long as every one could be an escape; -1 once one could not.
    """

    path: Path
    dialect: Dialect
    line: int
    row_line: int
    row_bytes: int = 0
    is_inside: bool = False
    opened: int = 0
    line_end: int | None = None
    escape_line: int = 0
    num_quoted_ends: int = 0
    longest: int = 0
    lines: list[Places] = field(default_factory=list)
    is_blank: list[NDArray[np.bool_]] = field(default_factory=list)

    def look_at(self, block: bytes) -> None:
        """Count the rows that end in a block."""
        data = np.frombuffer(block + bytes([_END]), np.uint8)
        ends = _find_line_ends(data, has_returns=b"\r" in block)
        if b"\\" in block:
            self._look_for_escapes(block)
        seen = self._without_escaped(data, ends) if self.dialect.quotes == "backslash" else data
        toggles = self._find_toggles(seen, ends) if self.dialect.quotes != "none" else np.empty(0, np.int64)
        is_outside = (np.searchsorted(toggles, ends) + self.is_inside) % 2 == 0
        is_row_end = is_outside & (seen[ends] == data[ends])
        self._check_line_ends(data, ends, is_row_end)
        self._count_rows(ends, is_row_end, len(block))
        self.is_inside ^= len(toggles) % 2 == 1
        self.line += len(ends)

    def layout(self) -> Layout:
        """Return what was counted."""
        if self.is_inside:
            raise DataError(
                f"{self.path}: line {self.opened} opens a quote that never closes; close it, or pass --set "
                "data.quotes=none where quotes are plain characters"
            )
        rest = self.row_bytes > 0  # the last row, where no line end follows it
        return Layout(
            np.concatenate([*self.lines, np.array([self.row_line] * rest, np.int64)]),
            np.concatenate([*self.is_blank, np.array([False] * rest, np.bool_)]),
            self.num_quoted_ends,
            max(self.longest, self.row_bytes),
            self.escape_line if self.escape_line > 0 else None,
        )

    def _count_rows(self, ends: Places, is_row_end: NDArray[np.bool_], num_bytes: int) -> None:
        row_ends, ranks = ends[is_row_end], np.flatnonzero(is_row_end)
        self.num_quoted_ends += len(ends) - len(row_ends)
        if not len(row_ends):
            self.row_bytes += num_bytes
            return
        starts = np.concatenate(([-self.row_bytes], row_ends[:-1] + 1))
        lengths = row_ends - starts + 1
        self.lines.append(np.concatenate(([self.row_line], self.line + ranks[:-1] + 1)))
        self.is_blank.append(lengths == len(_LINE_ENDS[self.line_end or _LF].split()))
        self.longest = max(self.longest, int(lengths.max()))
        self.row_line, self.row_bytes = self.line + int(ranks[-1]) + 1, num_bytes - int(row_ends[-1]) - 1

    def _check_line_ends(self, data: Bytes, ends: Places, is_row_end: NDArray[np.bool_]) -> None:
        """Refuse a CR that may belong to a text: before some line ends only, or between them."""
        kinds = data[ends] + np.where((data[ends] == _LF) & (data[ends - 1] == _CR), _CR, 0)
        if self.line_end is None and is_row_end.any():
            self.line_end = int(kinds[is_row_end][0])
        other = is_row_end & (kinds != self.line_end)
        if other.any():
            place = int(np.argmax(other))
            raise DataError(
                f"{self.path}: line {self.line + place} ends in {_LINE_ENDS[int(kinds[place])]}, the lines before it "
                f"in {_LINE_ENDS[self.line_end or _LF]}, so a carriage return may be part of a text; put such texts "
                "into double quotes, or write all line ends in one way"
            )

    def _find_toggles(self, data: Bytes, ends: Places) -> Places:
        """Return the quotes at which quoted fields begin and end."""
        quotes = np.flatnonzero(data == _QUOTE)
        if not len(quotes):
            return quotes
        is_edge = np.isin(np.arange(256), (_END, _LF, _CR, ord(self.dialect.separator)))
        is_doubled = np.diff(quotes) == 1
        begins = is_edge[data[quotes - 1]] | np.concatenate(([False], is_doubled))
        closes = is_edge[data[quotes + 1]] | np.concatenate((is_doubled, [False]))
        is_opening = (np.arange(len(quotes)) + self.is_inside) % 2 == 0
        if not np.where(is_opening, begins, closes).all():
            return self._walk(data, ends, quotes, is_edge)
        if is_opening[-1]:
            self.opened = self._line_of(ends, quotes[-1])
        return quotes

    def _walk(self, data: Bytes, ends: Places, quotes: Places, is_edge: NDArray[np.bool_]) -> Places:
        """Follow the quotes one by one, since some of them are plain characters, or wrong."""
        toggles: list[int] = []
        is_inside, is_second, edges = self.is_inside, False, is_edge.tolist()
        around = zip(quotes.tolist(), data[quotes - 1].tolist(), data[quotes + 1].tolist(), strict=True)
        for place, before, after in around:
            if is_second:
                is_second = False
            elif is_inside and after == _QUOTE:
                is_second = True
            elif is_inside and not edges[after]:
                opened = self._line_of(ends, toggles[-1]) if toggles else self.opened
                self._refuse_quote(opened, self._line_of(ends, place), before)
            elif is_inside or edges[before]:
                is_inside = not is_inside
                toggles.append(place)
            elif before == _SPACE and not self.dialect.is_stated and edges[_last_before(data, place)]:
                raise DataError(
                    f"{self.path}: line {self._line_of(ends, place)} has a space between a separator and a quote, so "
                    "it is not clear whether the quotes are part of the text; take the spaces out, or pass --set "
                    "data.quotes=doubled where they are"
                )
        if is_inside and toggles:
            self.opened = self._line_of(ends, toggles[-1])
        return np.array(toggles, np.int64)

    def _refuse_quote(self, opened: int, line: int, before: int) -> NoReturn:
        if before == _ESCAPE:
            cure = 'pass --set data.quotes=backslash where quotes inside a text are written \\"'
        else:
            cure = "write quotes inside a text twice, or pass --set data.quotes=none where quotes are plain characters"
        told = "" if line == opened else f"; the next one, in line {line}, does not close it"
        raise DataError(
            f"{self.path}: line {opened} opens a quote that does not close before a separator{told}; {cure}"
        )

    def _look_for_escapes(self, block: bytes) -> None:
        if self.escape_line < 0:
            return
        if not self.escape_line:
            self.escape_line = self.line + block.count(b"\n", 0, block.index(b"\\"))
        if b"\\" in _ESCAPES.sub(b"", block):
            self.escape_line = -1

    def _without_escaped(self, data: Bytes, ends: Places) -> Bytes:
        """Put a letter in the place of every character behind an escaping backslash."""
        slashes = np.flatnonzero(data == _ESCAPE)
        order = np.arange(len(slashes))
        begins_run = np.concatenate(([True], np.diff(slashes) > 1))[: len(slashes)]
        place_in_run = order - np.maximum.accumulate(np.where(begins_run, order, 0))
        escaped = slashes[place_in_run % 2 == 0] + 1  # of two backslashes, the first escapes the second
        is_known = np.isin(data[escaped], (_QUOTE, _ESCAPE, _LF, _CR, ord(self.dialect.separator)))
        if not is_known.all():
            place = int(escaped[np.argmin(is_known)])
            raise DataError(
                f"{self.path}: line {self._line_of(ends, place)} has a backslash before {chr(data[place])!r}; with "
                "data.quotes=backslash it can stand before a quote, a backslash, the separator or a line end, so pass "
                "--set data.quotes=doubled, or write backslashes twice"
            )
        seen = data.copy()
        seen[escaped] = _LETTER
        return seen

    def _line_of(self, ends: Places, place: int) -> int:
        return self.line + int(np.searchsorted(ends, place))


def _find_line_ends(data: Bytes, *, has_returns: bool) -> Places:
    """Return the places of LF, and of CR where no LF follows it."""
    feeds = np.flatnonzero(data == _LF)
    if not has_returns:
        return feeds
    returns = np.flatnonzero(data == _CR)
    return np.sort(np.concatenate((feeds, returns[data[returns + 1] != _LF])))


def _last_before(data: Bytes, place: int) -> int:
    """Return the last byte before the spaces that a place follows."""
    while data[place - 1] == _SPACE:
        place -= 1
    return int(data[place - 1])
