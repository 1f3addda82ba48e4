"""The columns of a shard by name: whole columns, and fields inside objects by dotted names such as `meta.label`."""

import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ftkit.config.tree import DataConfig
from ftkit.data.reading.classes import name_classes
from ftkit.data.reading.shards import Shard, Split
from ftkit.data.reading.values import is_json, kind_words, plain, table_of_rows, values_of
from ftkit.errors import DataError

_NUM_SAMPLES = 1000  # rows of objects whose keys are offered as names


def field_names(split: Split, config: DataConfig) -> list[str]:
    """Return the names that `gather` knows.

    Args:
        split: the files.
        config: may name fields deep inside objects.

    Returns:
        Every column of the split, after it the fields of its objects, and what the configuration names of those inside.
    """
    names: list[str] = []
    for shard in split.shards:
        for column in shard.table.column_names:
            names += [column, *(f"{column}.{inner}" for inner in _inner_names(shard.table[column]))]
    given = (getattr(config, field) for field in type(config).model_fields if field.endswith("_column"))
    named = [name for name in given if name is not None and "." in name and name not in names]
    names += [name for name in named if any(_lookup(shard, name) is not None for shard in split.shards)]
    return list(dict.fromkeys(names))


def nested_names(split: Split) -> set[str]:
    """Return the names of the columns that hold lists or objects."""
    return {
        field.name
        for shard in split.shards
        for field in shard.table.schema
        if is_json(field.type) or pa.types.is_nested(field.type)
    }


def read_field(shard: Shard, name: str) -> pa.ChunkedArray | None:
    """Return the values of a column or of a field inside one, numbers of classes as their names.

    Args:
        shard: N rows.
        name: a column's name, or one followed by the names of fields, with dots between.

    Returns:
        N values, null where an object is missing or lacks the field; None where no column has such a name.
    """
    values = _lookup(shard, name)
    if values is None or name not in shard.classes:
        return values
    return name_classes(shard, name, values)


def gather(split: Split, name: str) -> pa.ChunkedArray | None:
    """Return a column of every shard of a split, reconciled by its name.

    Args:
        split: its shards may order their columns, number their classes and store their texts in different ways.
        name: a column, or a field inside one by its dotted name.

    Returns:
        The values of all rows in one type; None where no shard has such a column.

    Raises:
        DataError: some shards lack the column, or hold another kind of value in it.
    """
    found = {shard.name: read_field(shard, name) for shard in split.shards}
    parts = {source: plain(values) for source, values in found.items() if values is not None}
    if not parts:
        return None
    for source in found.keys() - parts.keys():
        raise DataError(
            f"{source} has no column {name!r}, which {next(iter(parts))}, of the same split, has; add it, or leave the "
            "file out"
        )
    kinds = {values.type: source for source, values in reversed(parts.items()) if values.type != pa.null()}
    if len(kinds) > 1:
        told = " and ".join(f"{kind_words(kind)} in {source}" for kind, source in list(kinds.items())[:2])
        raise DataError(f"column {name!r} holds {told}, files of one split; write it in one way in all of them")
    kind = next(iter(kinds), pa.null())
    return pa.chunked_array([chunk.cast(kind) for values in parts.values() for chunk in values.chunks], kind)


def _lookup(shard: Shard, name: str) -> pa.ChunkedArray | None:
    """A column of exactly this name comes first, then the one with the longest name that begins it."""
    if name in shard.table.column_names:
        return shard.table[name]
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        column = ".".join(parts[:length])
        if column in shard.table.column_names:
            return _inside(shard, shard.table[column], parts[length:])
    return None


def _inside(shard: Shard, column: pa.ChunkedArray, path: list[str]) -> pa.ChunkedArray | None:
    if is_json(column.type):
        return _inside_json(shard, column, path)
    for part in path:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(part) < 0:
            return None
        column = pc.struct_field(column, part)
    return column


def _inside_json(shard: Shard, column: pa.ChunkedArray, path: list[str]) -> pa.ChunkedArray | None:
    found = False

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal found
        for value in values_of(column):
            for part in path:
                is_there = isinstance(value, dict) and part in value
                value = value[part] if is_there else None
            found |= is_there
            yield {"": value}

    table = table_of_rows(rows(), shard.where)
    return table[""] if found else None


def _inner_names(column: pa.ChunkedArray) -> list[str]:
    if pa.types.is_struct(column.type):
        return [field.name for field in column.type]
    if not is_json(column.type):
        return []
    sample = itertools.islice(values_of(column.slice(0, _NUM_SAMPLES)), _NUM_SAMPLES)
    return list(dict.fromkeys(key for value in sample if isinstance(value, dict) for key in value))
