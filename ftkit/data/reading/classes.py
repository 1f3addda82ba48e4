"""The class names that `datasets` stores in a file's schema, and the numbers that they give a name to."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ftkit.data.reading.shards import Shard
from ftkit.errors import DataError

_UNLABELLED = -1  # what `datasets` writes where a test split hides its labels


def stored_classes(table: pa.Table, source: str) -> dict[str, tuple[str, ...]]:
    """Read the class names out of a schema's metadata.

    Args:
        table: a table that may carry `datasets`' own description of its columns.
        source: the file, for the error.

    Returns:
        Column, or field inside one by its dotted name, to the name of class i at place i; also where a column holds
        lists of classes.

    Raises:
        DataError: the metadata is damaged.
    """
    stored = (table.schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return {}
    try:
        features = json.loads(stored).get("info", {}).get("features", {})
        return dict(_class_labels(features, ""))
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise DataError(
            f"{source}: the description of its columns by `datasets` is damaged ({error!r}); write the file again"
        ) from None


def name_classes(shard: Shard, column: str, numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Put the names of classes in the place of their numbers.

    Args:
        shard: the file whose schema names the classes; another file may number them otherwise.
        column: a column that `shard.classes` knows.
        numbers: its values: whole numbers, or lists of them.

    Returns:
        Texts, or lists of texts; null for null and for -1.

    Raises:
        DataError: a number that has no name.
    """
    if pa.types.is_list(numbers.type) or pa.types.is_large_list(numbers.type):
        chunks = [_named_lists(shard, column, chunk) for chunk in numbers.chunks]
        return pa.chunked_array(chunks, pa.large_list(pa.large_string()))
    if not (pa.types.is_integer(numbers.type) or pa.types.is_floating(numbers.type)):
        return numbers  # names already
    return pa.chunked_array([_named(shard, column, chunk) for chunk in numbers.chunks], pa.large_string())


def _class_labels(features: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, feature in features.items():
        while isinstance(feature, list) or feature.get("_type") in ("List", "LargeList", "Sequence"):
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        if feature.get("_type") == "ClassLabel":
            yield prefix + name, tuple(map(str, feature["names"]))
        elif "_type" not in feature:
            yield from _class_labels(feature, f"{prefix}{name}.")


def _named_lists(shard: Shard, column: str, lists: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(
        lists.offsets.cast(pa.int64()), _named(shard, column, lists.values), mask=lists.is_null()
    )


def _named(shard: Shard, column: str, numbers: pa.Array) -> pa.Array:
    names = pa.array(shard.classes[column], pa.large_string())
    whole = numbers.cast(pa.int64())  # a table that went through pandas may hold 1.0
    whole = pc.if_else(pc.equal(whole, _UNLABELLED), None, whole)
    wrong = pc.fill_null(pc.or_(pc.less(whole, 0), pc.greater_equal(whole, len(names))), False)
    if pc.any(wrong).as_py():
        number = whole.filter(wrong)[0].as_py()
        listed = ", ".join(shard.classes[column][:12])
        raise DataError(
            f"{shard.name}: column {column!r} holds the class {number}, but the file names only {len(names)} "
            f"({listed}); write the file with the names of all its classes"
        )
    return names.take(whole)
