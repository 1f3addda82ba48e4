"""Find how a CSV or TSV file writes its columns: as the user states it, or as its beginning shows."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftkit.config.tree import DataConfig
from ftkit.data.reading.decoding import utf8_blocks
from ftkit.data.reading.quotes import Dialect, Quotes
from ftkit.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What may stand between columns without being named, and the words for it."""

_HEAD_BYTES = 2**16  # Python's reader takes no field of more than twice this
_PREAMBLE = re.compile(r'(?:"?sep=(.)"?\r?\n)?(?:\r?\n)*')  # Excel's own line that names the separator; blank lines


@dataclass(frozen=True)
class Head:
    """The beginning of a file.

    Attributes:
        text: whole lines, the header first, or the longer part of a line that is longer than what is looked at.
        is_whole: the file goes no further.
        num_bytes: of what stands before the header: blank lines, and Excel's `sep=;`.
        line: the number of the header's line.
        separator: the one that `sep=` names, or None.
    """

    text: str
    is_whole: bool
    num_bytes: int
    line: int
    separator: str | None

    def widths(self, dialect: Dialect) -> list[int]:
        """Return the number of columns of the header and of every row that is not cut off."""
        widths = list(self._widths(dialect))
        return widths if self.is_whole or len(widths) < 2 else widths[:-1]

    def _widths(self, dialect: Dialect) -> Iterator[int]:
        has_escapes = dialect.quotes == "backslash"
        rows = csv.reader(
            io.StringIO(self.text, newline=""),
            delimiter=dialect.separator,
            quoting=csv.QUOTE_NONE if dialect.quotes == "none" else csv.QUOTE_MINIMAL,
            escapechar="\\" if has_escapes else None,
        )
        try:
            yield from (len(row) for row in rows if row)
        except csv.Error:  # what is wrong is told with its line when the quotes are looked at
            return


def read_head(path: Path, encoding: str) -> Head:
    """Read the beginning of a file.

    Args:
        path: the file.
        encoding: of the file.

    Returns:
        The header and the rows that a separator is recognised by.

    Raises:
        DataError: the file is not text, or has another encoding.
    """
    blocks = utf8_blocks(path, encoding)
    block = next(blocks, b"")
    begin = block[: 2 * _HEAD_BYTES].decode(errors="ignore")
    preamble = _PREAMBLE.match(begin)
    assert preamble is not None  # it matches nothing too
    text = begin[preamble.end() :]
    is_whole = len(block) <= _HEAD_BYTES and next(blocks, None) is None
    cut = text.rfind("\n", 0, _HEAD_BYTES) + 1 or _HEAD_BYTES
    lines = preamble[0].count("\n")
    return Head(text if is_whole else text[:cut], is_whole, len(preamble[0].encode()), lines + 1, preamble[1])


def choose_dialect(path: Path, head: Head, separator: str, config: DataConfig) -> Dialect:
    """Choose how a file's columns are written.

    Args:
        path: the file, for errors.
        head: its beginning.
        separator: the one that its suffix names.
        config: `separator` and `quotes`, where they are stated.

    Returns:
        The dialect; its separator is the only one that the header and all rows of the beginning agree on, or the
        suffix's where none is.

    Raises:
        DataError: several separators would do.
    """
    quotes: Quotes = "doubled" if config.quotes == "auto" else config.quotes
    is_stated = config.quotes != "auto"
    stated = config.separator or head.separator
    if stated is not None:
        return Dialect(stated, quotes, is_stated)
    widths = {known: head.widths(Dialect(known, quotes, is_stated)) for known in SEPARATORS}
    present = [known for known, counts in widths.items() if counts[:1] > [1]]
    fitting = [known for known in present if len(set(widths[known])) == 1]
    if len(fitting) > 1:
        names = " or ".join(SEPARATORS[known] for known in fitting)
        raise DataError(f"{path}: {names} could stand between its columns; say which with --set 'data.separator=;'")
    usual = [separator] if separator in present or not present else present
    return Dialect((fitting or usual)[0], quotes, is_stated)
