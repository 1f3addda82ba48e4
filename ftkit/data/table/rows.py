"""A split's rows on their way to tokens: an Arrow table of the chosen columns, checked and without empty rows."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftkit.data.reading.shards import Split
from ftkit.data.reading.values import is_json, is_text, kind_of, kind_words, values_of
from ftkit.data.spill import changed, taken, texts_of
from ftkit.data.table.columns import Columns
from ftkit.data.table.fields import gather
from ftkit.data.table.marks import joined_columns
from ftkit.data.table.prompts import PromptTemplate
from ftkit.errors import DataError

_CHUNK_ROWS = 10_000
_OPTIONAL = {"system", "tools"}
"""Roles whose column a split may lack: its conversations have none."""
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)\s*$"


def select_rows(split: Split, columns: Columns, *, may_lack_label: bool = False) -> pa.Table:
    """Take the chosen columns and the rows that have text.

    Args:
        split: the files that make it up, as they were read.
        columns: the chosen columns.
        may_lack_label: a split without the column of labels is as unlabelled as one full of -1.

    Returns:
        Columns `first`, `second`, `label`, `group`, `system`, `tools` as far as chosen; `file` and `row`, where the row
        stands.

    Raises:
        DataError: a column is missing in this split, texts are not texts, or no row is left.
    """
    names = {"first": columns.first, "second": columns.second, "label": columns.label, "group": columns.group}
    names |= {"system": columns.system, "tools": columns.tools}
    chosen = {role: name for role, name in names.items() if name is not None}
    if columns.prompt is not None:
        del chosen["first"]
    for role in _OPTIONAL & chosen.keys():
        if gather(split, chosen[role]) is None:
            del chosen[role]
    picked = {role: _pick(split, name) for role, name in chosen.items() if role != "label"}
    if columns.label is not None:
        picked["label"] = _labels(split, columns.several or (columns.label,), may_lack=may_lack_label)
    if columns.prompt is not None:
        picked["first"] = _prompts(split, columns.prompt)
    rows = pa.table(picked | _places(split))
    if columns.label is not None and is_json(rows["label"].type):
        raise DataError(_mixed_sentence(rows, "label", columns.label))
    # sums, ratings and codes are answers, and parts of prompts too
    allows_numbers = columns.kind == "completion" or columns.is_named
    for role in ("first", "second", "system"):
        if role in chosen and (role == "system" or columns.kind != "chat"):
            texts = _texts(rows, role, chosen[role], allows_numbers=allows_numbers)
            rows = rows.set_column(rows.column_names.index(role), role, texts)
    if columns.kind == "lines":  # blank lines belong to the text
        return rows
    return _without_empty(rows, columns, split.name)


def where(rows: pa.Table, place: int) -> str:
    """Return the words for where a row came from, such as `reviews.csv, line 12`.

    Args:
        rows: a table that `select_rows` gave.
        place: a row of it, from 0.

    Returns:
        The file, and the line, row or file in it.
    """
    return f"{rows['file'][place].as_py()} {rows['row'][place].as_py()}"


def keys(rows: pa.Table) -> NDArray[np.uint64]:
    """Return a number for each row's texts, uint64 [N]: equal texts, equal numbers."""
    texts = iterate(rows, "first", "second", "system", "tools")
    return np.fromiter((_key(row) for row in texts), dtype=np.uint64, count=rows.num_rows)


def with_plain_line_ends(rows: pa.Table) -> tuple[pa.Table, int]:
    """Write every line end of texts as one line feed, as models were trained on.

    Args:
        rows: a table of chosen columns.

    Returns:
        The table, and how many carriage returns before a line feed were taken out.
    """
    count = 0
    for role in ("first", "second", "system"):
        if role in rows.column_names and pa.types.is_large_string(rows[role].type):
            found = pc.sum(pc.count_substring(rows[role], "\r\n")).as_py() or 0
            if not found:
                continue
            count += found
            texts = changed(rows[role], pa.large_string(), lambda part: pc.replace_substring(part, "\r\n", "\n"))
            rows = rows.set_column(rows.column_names.index(role), role, texts)
    return rows, count


def count_half_pairs(rows: pa.Table) -> int:
    """Return how many rows have one text of a pair alone."""
    if "second" not in rows.column_names:
        return 0
    return int(pc.sum(pc.xor(_is_empty(rows["first"]), _is_empty(rows["second"]))).as_py() or 0)


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
        yield from zip(*(values_of(chunk[name]) for name in there), strict=True)


def iterate_conversations(rows: pa.Table) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row stands, and its columns as Python values.

    Arrow gives all objects of a column one set of keys: `{"city": "Oslo"}` in one row and `{"a": 2}` in another are
    stored as `{"city": "Oslo", "a": null}` and `{"city": null, "a": 2}`. So in what Arrow stores as objects, a key
    without a value counts as not written; objects of JSON files are as they were written.

    Args:
        rows: a table that `select_rows` gave.

    Yields:
        Words such as `chats.jsonl, line 12`, and column to value.
    """
    stored = [pa.types.is_nested(field.type) for field in rows.schema]
    for row in iterate(rows, *rows.column_names):
        values = [_without_nulls(value) if is_stored else value for value, is_stored in zip(row, stored, strict=True)]
        named = dict(zip(rows.column_names, values, strict=True))
        yield f"{named['file']} {named['row']}", named


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
    kind = rows["group"].type
    if pa.types.is_nested(kind) or is_json(kind):
        raise DataError(f"group column {name!r} holds {kind_words(kind)}; name a column of words or numbers")
    groups = rows["group"].cast(pa.large_string())
    if pc.any(_is_empty(groups)).as_py():
        raise DataError(
            f"{_first_where(rows, _is_empty(groups))} has no value in the group column {name!r}; give it one, so that "
            "it is known where the row belongs"
        )
    coded = groups.combine_chunks().dictionary_encode()
    return np.asarray(coded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _labels(split: Split, names: Sequence[str], *, may_lack: bool) -> pa.ChunkedArray:
    """Return the column of labels, several columns of 0 and 1 as one; nulls where a split may lack them."""
    if may_lack and any(gather(split, name) is None for name in names):
        return pa.chunked_array([pa.nulls(split.num_rows)])
    columns = [_pick(split, name) for name in names]
    return columns[0] if len(columns) == 1 else joined_columns(columns, names, split.name)


def _pick(split: Split, name: str) -> pa.ChunkedArray:
    column = gather(split, name)
    if column is None:
        raise DataError(
            f"the {split.name} split has no column {name!r}, which others have; it has {', '.join(split.column_names)}"
        )
    return column


def _places(split: Split) -> dict[str, Any]:
    sources = [(words, count) for shard in split.shards for words, count in shard.sources.items()]
    indices = np.repeat(np.arange(len(sources), dtype=np.int32), [count for _, count in sources])
    files = pa.DictionaryArray.from_arrays(pa.array(indices), pa.array([words for words, _ in sources]))
    return {"file": files, "row": pa.array(np.concatenate([shard.numbers for shard in split.shards]))}


def _key(texts: tuple[Any, ...]) -> int:
    whole = json.dumps(texts, sort_keys=True, default=str)  # not a join: ("a b", "c") is not ("a", "b c")
    return int.from_bytes(hashlib.blake2b(whole.encode(), digest_size=8).digest(), "little")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _prompts(split: Split, template: PromptTemplate) -> pa.ChunkedArray:
    """Fill a template with the columns of each row."""
    rows = pa.table({name: _pick(split, name) for name in template.columns} | _places(split))
    texts = pa.table({name: _texts(rows, name, name, allows_numbers=True) for name in template.columns})
    filled = (
        template.fill({name: text or "" for name, text in zip(template.columns, row, strict=True)})
        for row in iterate(texts, *template.columns)
    )
    return texts_of(filled)


def _texts(rows: pa.Table, role: str, name: str, *, allows_numbers: bool) -> pa.ChunkedArray:
    """Return a column as large strings: a column of more than 2 GiB could not be taken from otherwise."""
    column = rows[role]
    if is_json(column.type):
        raise DataError(_mixed_sentence(rows, role, name))
    is_whole = pa.types.is_integer(column.type)
    if not (is_text(column.type) or pa.types.is_null(column.type) or (allows_numbers and is_whole)):
        is_number = allows_numbers and pa.types.is_floating(column.type)
        cure = "write them as texts, since 5 and 5.0 are not the same text" if is_number else "name a column of texts"
        raise DataError(f"{where(rows, 0)}: column {name!r} holds {kind_words(column.type)}, not text; {cure}")
    texts = column.cast(pa.large_string())
    head = texts.slice(0, 1000).drop_null()
    if not allows_numbers and len(head) and pc.all(pc.match_substring_regex(head, _NUMBER)).as_py():
        raise DataError(
            f"{where(rows, 0)}: column {name!r} holds numbers such as {head[0].as_py()!r}, not text; name a column of "
            "texts, or this one with --text-column"
        )
    return texts


def _mixed_sentence(rows: pa.Table, role: str, name: str) -> str:
    """Return what is wrong with a column that is JSON: kinds that are mixed, or one that Arrow has no type for."""
    values = [(kind_of(value), place) for place, value in enumerate(values_of(rows[role])) if value is not None]
    told = _first_places(rows, values)
    cure = "write lists of words, or of whole numbers" if role == "label" else "name a column of texts"
    if {kind for kind, _ in values} == {"a list"}:
        lists = enumerate(values_of(rows[role]))
        inner = _first_places(rows, [(kind_of(one), place) for place, value in lists for one in value or ()])
        return f"column {name!r} holds lists with {' and '.join(inner[:2])}; {cure}"
    if len(told) > 1:
        return f"column {name!r} holds {told[0]}, and {told[1]}; write the same kind of value in every row"
    filled = (value for value in values_of(rows[role]) if isinstance(value, dict) and value)
    inside = next((f" or a field inside this one, such as {f'{name}.{next(iter(value))}'!r}" for value in filled), "")
    return f"column {name!r} holds {told[0]}; name a column of plain values{inside}{_whole_table(rows)}"


def _first_places(rows: pa.Table, kinds: Sequence[tuple[str, int]]) -> list[str]:
    """Return each kind of value with the words for the first row that has it."""
    first = dict(reversed(kinds))
    return [f"{kind} in {where(rows, place)}" for kind, place in sorted(first.items(), key=lambda item: item[1])]


def _whole_table(rows: pa.Table) -> str:
    """Return a hint where a lone row may hold all rows, as pandas' `to_json` writes a table."""
    return "" if rows.num_rows > 1 else ", or write one object a row where this one holds all rows"


def _without_empty(rows: pa.Table, columns: Columns, split: str) -> pa.Table:
    empty = _is_empty(rows["first"])
    if columns.kind == "completion":
        _refuse_half_rows(rows, empty, columns)
    if "second" in rows.column_names:
        empty = pc.and_(empty, _is_empty(rows["second"]))
    kept = taken(rows, np.flatnonzero(~np.asarray(empty))) if pc.any(empty).as_py() else rows
    if kept.num_rows == 0:
        raise DataError(
            f"no row of the {split} split has text in column {columns.first!r}; name another column of texts"
        )
    for role in ("first", "second") if columns.kind != "chat" else ():
        if role in kept.column_names and kept[role].null_count:  # the half of a pair that is not there
            texts = changed(kept[role], pa.large_string(), lambda part: part.fill_null(""))
            kept = kept.set_column(kept.column_names.index(role), role, texts)
    return kept


def _is_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_large_string(column.type)):
        return pc.is_null(column)
    # A chunk at a time: what is trimmed is a copy of the texts.
    found = [pc.fill_null(pc.equal(pc.utf8_trim_whitespace(chunk), ""), True) for chunk in column.chunks]
    return pa.chunked_array(found, pa.bool_())


def _refuse_half_rows(rows: pa.Table, empty: pa.ChunkedArray, columns: Columns) -> None:
    half = pc.and_(pc.invert(empty), _is_empty(rows["second"]))
    if pc.any(half).as_py():
        raise DataError(
            f"{_first_where(rows, half)} has a prompt in {columns.first!r} but no completion in {columns.second!r}; "
            "give it one, or leave it out"
        )


def _first_where(rows: pa.Table, is_wrong: pa.ChunkedArray) -> str:
    return where(rows, pc.index(is_wrong, True).as_py())
