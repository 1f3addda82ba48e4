"""The two lines below the header of a table that Orange wrote: the type and the role of each column."""

import re
from dataclasses import replace

import pyarrow as pa

from ftkit.data.reading.shards import Shard

# Orange's three-line header: https://orange3.readthedocs.io/projects/orange-data-mining-library/en/latest/reference/data.io.html
_TYPES = {"c", "continuous", "d", "discrete", "s", "string", "text", "t", "time"}
_ROLES = {"c", "class", "m", "meta", "i", "ignore", "w", "weight"}
_WORDS = re.compile(r"(?:\\.|\S)+")
"""Of a list of values or of attributes; a space within one has a backslash before it."""


def without_types(shard: Shard) -> Shard:
    """Leave out the lines of types and roles, where a table has both.

    Args:
        shard: columns of text, as they stand in the file.

    Returns:
        The rows below these lines, and a note that says so; the same shard where its first two rows are anything else.
    """
    head = [[str(value or "") for value in row.values()] for row in shard.table.slice(0, 2).to_pylist()]
    if shard.places is None or len(head) < 2 or not _are_roles(head[1]):
        return shard
    rows = shard.table.slice(2)
    if not all(_is_type(cell, column) for cell, column in zip(head[0], rows.columns, strict=True)):
        return shard
    told = f"lines {shard.places[0]} and {shard.places[1]} are the columns' types and roles, not rows"
    return replace(shard, table=rows, places=shard.places[2:], notes=(*shard.notes, told))


def _are_roles(cells: list[str]) -> bool:
    """Return whether each cell has roles and attributes (`key=value`) alone, and at least one cell has any."""
    words = [word for cell in cells for word in _WORDS.findall(cell)]
    return bool(words) and all(word in _ROLES or word.find("=") > 0 for word in words)


def _is_type(cell: str, column: pa.ChunkedArray) -> bool:
    """Return whether a cell is a type, or a list of values of which the column below has some.

    Orange writes the list for a column of classes, in their order, and the word `discrete` for a column of one value.
    """
    values = {re.sub(r"\\(.)", r"\1", word) for word in _WORDS.findall(cell)}
    return cell.strip() in _TYPES or (len(values) > 1 and any(value in values for value in column.to_pylist()))
