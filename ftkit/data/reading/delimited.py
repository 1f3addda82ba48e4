"""CSV and TSV files to rows of texts, exactly as they are written.

Every column is text: `NA`, `007` and `1.0` stay what they are. The file is read twice, a block at a time: once to count
its rows and to see that its quotes hold, and once by Arrow, which must find as many.
"""

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from ftkit.config.tree import DataConfig
from ftkit.data.reading.decoding import is_plain, is_utf8, utf8_blocks
from ftkit.data.reading.dialects import SEPARATORS, Head, choose_dialect, read_head
from ftkit.data.reading.quotes import Dialect, Layout, lay_out
from ftkit.data.reading.shards import Shard
from ftkit.data.spill import table_of
from ftkit.errors import DataError

_BLOCK_BYTES = 2**20  # Arrow reads up to 32 blocks ahead (kDefaultBackgroundMaxQ, arrow/util/async_generator.h)
_MARK = "\ufeff"
_MAX_LABELS = 50  # a first or last column of more values is not taken for one of labels
_RAGGED = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")


def read_delimited(path: Path, separator: str, config: DataConfig) -> Shard:
    """Read a table whose columns are separated by one character.

    Args:
        path: the file.
        separator: the one that its suffix names; another is recognised where the header and all rows at the file's
            beginning agree on it.
        config: `encoding`, and `separator` and `quotes` where they are stated.

    Returns:
        Columns of text, with the line of every row.

    Raises:
        DataError: quotes that do not hold, rows of another width, or a separator that could be several, with the line.
    """
    head = read_head(path, config.encoding)
    dialect = choose_dialect(path, head, separator, config)
    layout = lay_out(path, _behind(path, head, config), dialect, head.line)
    if layout.escape_line is not None and not dialect.is_stated:
        raise DataError(
            f"{path}: line {layout.escape_line} has the first of the backslashes, all of which stand before quotes, "
            "separators, line ends or backslashes, as if they were not part of the texts; pass "
            "--set data.quotes=backslash where they only protect what follows, or --set data.quotes=doubled where they "
            "are text"
        )
    rows = _parse(path, head, dialect, layout, config)
    lines = layout.lines if rows.num_columns == 1 else layout.lines[~layout.is_blank]
    if rows.num_rows != len(lines):
        raise DataError(f"{path} has {len(lines):,} rows, but {rows.num_rows:,} were read; save the file as JSONL")
    table = _below_header(rows)
    if not dialect.is_stated and layout.num_quoted_ends:
        _refuse_swallowed(path, table, dialect, lines[1:])
    notes = (*_notes(layout, dialect, separator, config), *_repeated_header(table), *_inner_marks(table))
    return Shard(str(path), table, unit="line", places=lines[1:], notes=notes)


def _behind(path: Path, head: Head, config: DataConfig) -> Iterator[bytes]:
    """Yield a file's content from its header on."""
    blocks = utf8_blocks(path, config.encoding)
    yield next(blocks, b"")[head.num_bytes :]
    yield from blocks


def _parse(path: Path, head: Head, dialect: Dialect, layout: Layout, config: DataConfig) -> pa.Table:
    """Read the header as one more row: what columns are called is as free as a text."""
    names = [str(place) for place in range(next(iter(head.widths(dialect)), 1))]
    is_direct = is_plain(path, config.encoding)
    read = pa_csv.ReadOptions(
        use_threads=False,  # one thread counts rows
        block_size=max(_BLOCK_BYTES, layout.longest + 1),
        column_names=names,
        skip_rows=head.line - 1 if is_direct else 0,
    )
    parse = pa_csv.ParseOptions(
        delimiter=dialect.separator,
        quote_char=False if dialect.quotes == "none" else '"',
        escape_char="\\" if dialect.quotes == "backslash" else False,
        newlines_in_values=dialect.quotes != "none",
        ignore_empty_lines=len(names) > 1,  # the text of a single column may be empty
    )
    convert = pa_csv.ConvertOptions(check_utf8=False, column_types=dict.fromkeys(names, pa.large_string()))
    try:
        source = str(path) if is_direct else io.BufferedReader(_Stream(_behind(path, head, config)))
        with pa_csv.open_csv(source, read, parse, convert) as batches:
            return table_of(batches, batches.schema)
    except pa.ArrowInvalid as error:
        lines = layout.lines if len(names) == 1 else layout.lines[~layout.is_blank]
        raise DataError(_ragged_sentence(path, str(error), dialect, lines, read.skip_rows)) from None


class _Stream(io.RawIOBase):
    """Blocks as a file that Arrow can read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        """Take the blocks."""
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]  # RawIOBase takes any buffer
        """Fill a buffer with what is left of a block."""
        self._rest = self._rest or next(self._blocks, b"")
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


def _ragged_sentence(path: Path, reason: str, dialect: Dialect, lines: NDArray[np.int64], skipped: int) -> str:
    ragged = _RAGGED.search(reason)
    if ragged is None:
        return f"{path} cannot be read as a table: {' '.join(reason.split())}; check its quotes and separators"
    row, wanted, given = (int(text) for text in ragged.groups())
    name = SEPARATORS.get(dialect.separator, repr(dialect.separator))
    # A title has fewer fields than the table below it, and mostly one.
    title = "if lines stand above the header, remove them; else " if wanted == 1 < given else ""
    return (
        f"{path}: line {lines[row - 1 - skipped]} has {given} field(s) for the header's {wanted}, with {name} between "
        f"them; {title}put texts that hold the separator into double quotes, or name another with "
        "--set data.separator=..."
    )


def _below_header(rows: pa.Table) -> pa.Table:
    """Name the columns by the first row; columns without a name and without a text are left out."""
    header = [column[0].as_py() for column in rows.columns]
    table = rows.slice(1)
    kept = [place for place, name in enumerate(header) if name or pc.any(pc.not_equal(table[place], "")).as_py()]
    return table.select(kept).rename_columns([header[place] for place in kept])


def _refuse_swallowed(path: Path, table: pa.Table, dialect: Dialect, lines: NDArray[np.int64]) -> None:
    """Refuse a quoted text whose every line has a label where rows have one: stray quotes with rows between them."""
    is_long = np.diff(lines, append=lines[-1] + 2) > 1  # the last one may be long, too
    several = table.filter(pa.array(is_long))
    labels = [_labels(column) for column in table.columns]
    broken = [place for place, texts in enumerate(several.columns) if pc.any(pc.match_substring(texts, "\n")).as_py()]
    for place, other in itertools.product(broken, range(table.num_columns)):
        if place == other or not labels[other]:
            continue
        texts = several[place]
        regex = _row_regex(dialect.separator, labels[other], other, table.num_columns, is_behind=other > place)
        counts = pc.count_substring(texts, "\n"), pc.count_substring_regex(texts, regex)
        alike = pc.and_(pc.equal(*counts), pc.greater(counts[0], 0))
        if pc.any(alike).as_py():
            line = lines[is_long][pc.index(alike, True).as_py()]
            raise DataError(
                f"{path}: line {line} opens a quote that closes only some lines later, and each line between looks "
                "like a row; write quotes inside texts twice, or pass --set data.quotes=none where quotes are "
                "plain characters, or --set data.quotes=doubled where this is one text"
            )


def _row_regex(separator: str, labels: list[str], place: int, width: int, *, is_behind: bool) -> str:
    """Return what matches a line end where the row that ends there, or begins behind it, has a label in its place."""
    mark = re.escape(separator)
    words, other = "|".join(map(re.escape, labels)), f"[^{mark}\n]*"
    if is_behind:
        return f"{mark}(?:{words})(?:{mark}{other}){{{width - 1 - place}}}\r?\n"
    return f"\n(?:{other}{mark}){{{place}}}(?:{words}){mark}"


def _labels(column: pa.ChunkedArray) -> list[str]:
    """Return the values of a column where they are few enough to be labels, else none."""
    most = min(_MAX_LABELS, len(column) // 2)
    for part in (column.slice(0, 100 * _MAX_LABELS), column):  # the beginning alone rules most columns out
        values = pc.unique(part)
        if len(values) > most:
            return []
    return [value for value in values.to_pylist() if value]


def _inner_marks(table: pa.Table) -> list[str]:
    """Tell of byte order marks that begin a row, as where files were put end to end; they stay a part of its field."""
    count = pc.sum(pc.starts_with(table[0], _MARK)).as_py() if table.num_columns else 0
    return [f"rows that begin with a byte order mark: {count:,}"] if count else []


def _repeated_header(table: pa.Table) -> list[str]:
    """Tell of rows that say what the header says, as where files were put end to end."""
    again = table
    for place, name in enumerate(table.column_names):
        says = [
            pc.equal(pc.utf8_ltrim(one, characters=_MARK) if place == 0 else one, name) for one in again[place].chunks
        ]
        again = again.filter(pa.chunked_array(says, pa.bool_()))
    return [f"rows that repeat the header: {again.num_rows:,}"] if again.num_rows else []


def _notes(layout: Layout, dialect: Dialect, separator: str, config: DataConfig) -> tuple[str, ...]:
    """Return what a user may not expect, in a few words each."""
    quotes = {"backslash": "backslashes protect quotes", "none": "quotes are plain characters"}
    told = {
        f"{SEPARATORS.get(dialect.separator, repr(dialect.separator))} between columns": dialect.separator != separator,
        f"in {config.encoding}": not is_utf8(config.encoding),
        quotes.get(dialect.quotes, ""): dialect.quotes in quotes,
        f"line ends inside quotes: {layout.num_quoted_ends:,}": layout.num_quoted_ends > 0,
    }
    return tuple(words for words, is_so in told.items() if is_so)
