"""A split's rows on their way to tokens: an Arrow table of the chosen columns, checked and without empty rows."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftkit.data.columns import Columns
from ftkit.errors import DataError

_CHUNK_ROWS = 10_000
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)\s*$"


def select_rows(table: pa.Table, columns: Columns, split: str) -> pa.Table:
    """Take the chosen columns and the rows that have text.

    Args:
        table: a split as it was read.
        columns: the chosen columns.
        split: the split's name, for errors.

    Returns:
        Columns `first`, `second`, `label`, `group` as far as chosen, and `row`, the number of the row from 1.

    Raises:
        DataError: a column is missing in this split, texts are no texts, or no row is left.
    """
    names = {"first": columns.first, "second": columns.second, "label": columns.label, "group": columns.group}
    picked: dict[str, Any] = {}
    for role, name in names.items():
        if name is not None and name not in table.column_names:
            raise DataError(f"the {split} split has no column {name!r}, which others have; it has {table.column_names}")
        if name is not None:
            picked[role] = table[name]
    picked["row"] = pa.array(np.arange(1, table.num_rows + 1))
    if columns.kind == "chat":
        _check_messages(picked["first"], columns.first, split)
    else:
        picked.update(
            {role: _texts(picked[role], names[role] or "", split) for role in ("first", "second") if role in picked}
        )
    rows = pa.table(picked)
    if columns.kind == "lines":  # blank lines belong to the text
        return rows
    return _without_empty(rows, columns, split)


def keys(rows: pa.Table) -> NDArray[np.uint64]:
    """Return a number for each row's texts, uint64 [N]: equal texts, equal numbers."""
    return np.fromiter((_key(row) for row in iterate(rows, "first", "second")), dtype=np.uint64, count=rows.num_rows)


def iterate(rows: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    """Yield rows as Python values, a chunk at a time.

    Args:
        rows: a table of N rows.
        names: columns; those that are not there are left out.

    Yields:
        One value for each column.
    """
    there = [name for name in names if name in rows.column_names]
    for start in range(0, rows.num_rows, _CHUNK_ROWS):
        chunk = rows.slice(start, _CHUNK_ROWS)
        yield from zip(*(chunk[name].to_pylist() for name in there), strict=True)


def group_numbers(rows: pa.Table, name: str) -> NDArray[np.int64]:
    """Return the rows' groups as numbers, in order of appearance.

    Args:
        rows: a table with a column `group`.
        name: the group column's own name, for the error.

    Returns:
        int64 [N], from 0.

    Raises:
        DataError: a row has no group.
    """
    if pa.types.is_nested(rows["group"].type):
        raise DataError(f"group column {name!r} holds {rows['group'].type} values; name a column of words or numbers")
    groups = rows["group"].cast(pa.large_string())
    if pc.any(_is_empty(groups)).as_py():
        row = rows["row"].filter(_is_empty(groups))[0].as_py()
        raise DataError(
            f"row {row} has no value in the group column {name!r}; give it one, so that it is known where it belongs"
        )
    coded = groups.combine_chunks().dictionary_encode()
    return np.asarray(coded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _key(texts: tuple[Any, ...]) -> int:
    text = "\0".join(text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=str) for text in texts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _texts(column: pa.ChunkedArray, name: str, split: str) -> pa.ChunkedArray:
    """Return a column as large strings: a column of more than 2 GiB could not be taken from otherwise."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_text or pa.types.is_null(kind)):
        raise DataError(
            f"column {name!r} of the {split} split holds {kind} values, not text; name another column of texts"
        )
    texts = column.cast(pa.large_string())
    head = texts.slice(0, 1000).drop_null()
    if len(head) and pc.all(pc.match_substring_regex(head, _NUMBER)).as_py():
        raise DataError(
            f"column {name!r} of the {split} split holds numbers such as {head[0].as_py()!r}, not "
            "text; name a column of texts"
        )
    return texts


def _without_empty(rows: pa.Table, columns: Columns, split: str) -> pa.Table:
    empty = _is_empty(rows["first"])
    if columns.kind == "completion":
        _refuse_half_rows(rows, empty, columns)
    if "second" in rows.column_names:
        empty = pc.and_(empty, _is_empty(rows["second"]))
    kept = rows.filter(pc.invert(empty))
    if kept.num_rows == 0:
        raise DataError(
            f"no row of the {split} split has text in column {columns.first!r}; name another column of texts"
        )
    for role in ("first", "second"):
        if role in kept.column_names and kept[role].null_count:  # the half of a pair that is not there
            kept = kept.set_column(kept.column_names.index(role), role, kept[role].fill_null(""))
    return kept


def _is_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_large_string(column.type)):
        return pc.is_null(column)
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)


def _refuse_half_rows(rows: pa.Table, empty: pa.ChunkedArray, columns: Columns) -> None:
    half = pc.and_(pc.invert(empty), _is_empty(rows["second"]))
    if pc.any(half).as_py():
        row = rows["row"].filter(half)[0].as_py()
        raise DataError(
            f"row {row} has a prompt in {columns.first!r} but no completion in {columns.second!r}; "
            "give it one, or leave it out"
        )


def _check_messages(column: pa.ChunkedArray, name: str, split: str) -> None:
    wanted = "write a list of objects such as {'role': 'user', 'content': 'Hello'}"
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        raise DataError(f"column {name!r} of the {split} split holds {kind} values, not chat messages; {wanted}")
    fields = [kind.value_type.field(place).name for place in range(kind.value_type.num_fields)]
    if not {"role", "content"} <= set(fields):
        raise DataError(
            f"the messages in column {name!r} have {' and '.join(fields)}, but no role and content; {wanted}"
        )
