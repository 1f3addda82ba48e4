"""Rows of Python values to columns that hold them unaltered.

A column of one kind becomes Arrow's: text, whole numbers, numbers, booleans, or lists of one of these. Everything else
(objects, lists of objects, kinds that are mixed, numbers beyond 64 bits) becomes JSON text, of the type `pa.JsonType`:
Arrow would give every object the keys of all others, and turn whole numbers beside decimals into decimals.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from typing import Any

import pyarrow as pa

from ftkit.data.spill import changed, table_of, tables_of
from ftkit.errors import DataError

Row = dict[str, Any]
_CHUNK_ROWS = 2_000  # Python objects are some ten times their Arrow bytes: hold few of them
_EXACT = 2**53  # the whole numbers below it are exact as float64
_SCALARS: dict[type, pa.DataType] = {
    str: pa.large_string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    datetime: pa.timestamp("us"),  # this and what follows are Excel's
    date: pa.date32(),
    time: pa.time64("us"),
    timedelta: pa.duration("us"),
}
_JSON = pa.json_(pa.large_string())
_ENCODE = json.JSONEncoder(ensure_ascii=False, default=str).encode
_WORDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number with decimals",
}


def table_of_rows(rows: Iterable[Row], where: Callable[[int], str]) -> pa.Table:
    """Make a table of rows whose keys may differ; what a row lacks is null.

    Args:
        rows: N objects of JSON's kinds of values, or dates.
        where: the words for the place of a row, counted from 0.

    Returns:
        N rows; the columns in order of appearance.

    Raises:
        DataError: a text that is not Unicode.
    """
    tables = tables_of(_batches(rows, where))
    if len(tables) == 1:
        return tables[0]
    names = tables[-1].column_names if tables else []  # each has all the names of those before it
    kinds = {name: _joint([table[name] for table in tables if name in table.column_names]) for name in names}
    recast = (_recast_batch(batch, kinds) for table in tables for batch in table.to_batches())
    return table_of(recast, pa.schema(kinds))


def kind_of(value: object) -> str:
    """Return the words for what a JSON value is."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a number beyond 64 bits"
    return "null" if value is None else _WORDS.get(type(value), "a date")


def is_json(kind: pa.DataType) -> bool:
    """Whether a column holds JSON text; `values_of` gives what it says."""
    return isinstance(kind, pa.JsonType)


def values_of(column: pa.Array | pa.ChunkedArray) -> Iterator[Any]:
    """Yield a column's values as Python's, those of JSON text as they were in the file."""
    values = column.to_pylist()
    return (None if value is None else json.loads(value) for value in values) if is_json(column.type) else iter(values)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bring the many types that tables store one kind of scalar in to one: text, whole numbers, numbers.

    Args:
        column: of any type; a text column that is larger than 2 GiB stays whole.

    Returns:
        `large_string`, `int64` or `float64` where nothing is lost by it, else the column as it is.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain(_recast(column, kind.value_type))
    wider = _wider(kind)
    try:
        return column if wider == kind else _recast(column, wider)
    except pa.ArrowInvalid:  # whole numbers beyond int64
        return column


def _recast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return changed(column, kind, lambda part: part.cast(kind))


def _wider(kind: pa.DataType) -> pa.DataType:
    """Return the one type for all texts, for all whole numbers or for all numbers, else the type itself."""
    if is_text(kind):
        return pa.large_string()
    is_decimal = pa.types.is_decimal(kind)  # as databases export numbers
    if pa.types.is_integer(kind) or (is_decimal and kind.scale <= 0):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(kind) or is_decimal else kind


def kind_words(kind: pa.DataType) -> str:
    """Return the words for what a column of a type holds."""
    if is_json(kind):
        return "objects or mixed values"
    checks = {
        "text": is_text,
        "whole numbers": pa.types.is_integer,
        "numbers with decimals": pa.types.is_floating,
        "true and false": pa.types.is_boolean,
        "nothing": pa.types.is_null,
        "lists": lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind),
        "objects": pa.types.is_struct,
    }
    return next((words for words, check in checks.items() if check(kind)), f"{kind} values")


def _batches(rows: Iterable[Row], where: Callable[[int], str]) -> Iterator[pa.RecordBatch]:
    """Yield rows a few thousand at a time, each batch with all columns so far in the types of its own values."""
    names: dict[str, None] = {}
    chunk: list[Row] = []
    done, coming = 0, iter(rows)
    while more := list(itertools.islice(coming, _CHUNK_ROWS)):
        chunk += more
        names = dict.fromkeys(itertools.chain(names, *chunk))
        if not names:  # a batch without columns would have no rows
            continue
        columns = []
        for name in names:
            values = [row.get(name) for row in chunk]
            try:
                columns.append(_array(values))
            except UnicodeEncodeError:
                place = where(done + next(row for row, value in enumerate(values) if not _is_unicode(value)))
                raise DataError(
                    f"{place} has half a character (a lone surrogate) in column {name!r}; correct the text"
                ) from None
        yield pa.record_batch(columns, names=list(names))
        done += len(chunk)
        chunk = []


def _array(values: list[Any]) -> pa.Array:
    kind = _kind(values)
    try:
        return _json_array(values) if kind == _JSON else pa.array(values, kind)
    except OverflowError:
        return _json_array(values)


def _kind(values: list[Any]) -> pa.DataType:
    """Return the type that holds values unaltered."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int, float} and all(abs(value) <= _EXACT for value in values if type(value) is int):
        return pa.float64()
    if kinds == {list}:
        inner = {type(item) for value in values if value is not None for item in value}
        return pa.list_(_scalar(inner)) if inner <= _SCALARS.keys() and len(inner) < 2 else _JSON
    return _scalar(kinds)


def _scalar(kinds: set[type]) -> pa.DataType:
    if len(kinds) > 1:
        return _JSON
    return _SCALARS.get(next(iter(kinds)), _JSON) if kinds else pa.null()


def _json_array(values: Iterable[Any]) -> pa.Array:
    texts = [None if value is None else _ENCODE(value) for value in values]
    return pa.ExtensionArray.from_storage(_JSON, pa.array(texts, pa.large_string()))


def _joint(parts: list[pa.ChunkedArray]) -> pa.DataType:
    """Return the type that holds the parts of a column unaltered."""
    kind = _common({part.type for part in parts if part.type != pa.null()})
    try:
        for chunk in (chunk for part in parts if kind == pa.float64() for chunk in part.chunks):
            chunk.cast(kind)
    except pa.ArrowInvalid:  # a whole number that float64 cannot hold
        return _JSON
    return kind


def _recast_batch(batch: pa.RecordBatch, kinds: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """Bring a batch to some types; columns that it lacks are null."""
    absent = pa.nulls(batch.num_rows)
    given = [batch[name] if name in batch.schema.names else absent for name in kinds]
    return pa.record_batch([_cast(part, kind) for part, kind in zip(given, kinds.values(), strict=True)], list(kinds))


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    if len(kinds) < 2:
        return next(iter(kinds), pa.null())
    if kinds == {pa.int64(), pa.float64()}:
        return pa.float64()
    filled = kinds - {pa.list_(pa.null())}
    return filled.pop() if len(filled) == 1 and all(map(pa.types.is_list, kinds)) else _JSON


def _cast(part: pa.Array, kind: pa.DataType) -> pa.Array:
    if kind != _JSON:
        return part.cast(kind)
    return part if is_json(part.type) else _json_array(part.to_pylist())


def _is_unicode(value: Any) -> bool:
    try:
        (value if isinstance(value, str) else _ENCODE(value)).encode()
    except UnicodeEncodeError:
        return False
    return True
