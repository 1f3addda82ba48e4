"""Several labels of one text, however they are written: lists, texts with a separator, columns of 0 and 1.

Legend: N rows, M labels of all rows together, C distinct labels.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftkit.data.labels.kinds import NUMBER, holds_lists, looks_like_lists
from ftkit.data.labels.one_class import MISSING, LabelCoder, RawLabels, read_labels
from ftkit.data.table.marks import marks
from ftkit.errors import DataError


@dataclass(frozen=True)
class SeveralLabels:
    """One split's labels as they are written, any number for each row.

    Attributes:
        owners: int64 [M], the row that each label belongs to.
        raw: the M labels.
        is_missing: bool [N], whether a row has no value at all; an empty list is a value.
        num_places: C where every row is a list of C zeros and ones, label i at place i; else None.
    """

    owners: NDArray[np.int64]
    raw: RawLabels
    is_missing: NDArray[np.bool_]
    num_places: int | None = None

    @property
    def num_repeated(self) -> int:
        """The labels that rows name more than once, counted."""
        pairs = np.stack([self.owners, self.raw.codes])
        return int(pairs.shape[1] - np.unique(pairs, axis=1).shape[1])

    def matrix(self, coder: LabelCoder, seen: set[int | str], split: str) -> NDArray[np.int8]:
        """Return which row has which label.

        Args:
            coder: numbers the labels.
            seen: the labels of the training split.
            split: the name of the split, for the error.

        Returns:
            int8 [N, C] of 0 and 1; all -1 where a row has no value.

        Raises:
            DataError: a label that does not occur in the training split, or an empty one.
        """
        numbers = coder.encode(self.raw, seen, split)
        if (numbers == MISSING).any():
            row = int(self.owners[np.argmax(numbers == MISSING)]) + 1
            raise DataError(f"a list of labels of the {split} split has an empty one (list {row}); take it out")
        matrix = np.zeros((len(self.is_missing), len(coder.names)), dtype=np.int8)
        matrix[self.owners, numbers] = 1
        matrix[self.is_missing] = MISSING
        return matrix


def read_several(
    column: pa.ChunkedArray, name: str, separator: str | None, classes: Sequence[str] | None
) -> SeveralLabels:
    """Read a column whose rows have several labels each.

    Args:
        column: lists, texts, or one value a row.
        name: the column's name, for errors.
        separator: what stands between labels in a text; None: a text is one label, or a list in brackets.
        classes: the names of class numbers that are stored with the column, or None.

    Returns:
        The labels.

    Raises:
        DataError: the values are not labels.
    """
    lists = _as_lists(column.combine_chunks(), name, separator)
    is_missing = pc.is_null(lists).to_numpy(zero_copy_only=False)
    owners = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.list_flatten(lists)
    num_places = None if classes is not None else _num_places(lists, flat)
    if num_places is not None:
        is_set = marks(flat, name, "") == 1
        codes = np.tile(np.arange(num_places), len(flat) // num_places)[is_set]
        return SeveralLabels(owners[is_set], RawLabels(codes, tuple(range(num_places))), is_missing, num_places)
    if _has_decimals(flat):
        raise DataError(
            f"column {name!r} holds lists of numbers with decimals; ftkit trains lists of labels, lists of 0 and 1, or "
            "one number a text"
        )
    return SeveralLabels(owners, read_labels(pa.chunked_array([flat]), name, classes), is_missing)


def _as_lists(column: pa.Array, name: str, separator: str | None) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if holds_lists(column.type):
        return column.cast(pa.large_list(column.type.value_type))
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if is_text:
        trimmed = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    if is_text and separator is not None:
        return pc.split_pattern(column, separator).cast(pa.large_list(column.type))
    values = pc.unique(column).drop_null().to_pylist() if is_text else []
    if looks_like_lists(values):
        return pa.array([_parsed(text, name) for text in column.to_pylist()]).cast(pa.large_list(pa.large_string()))
    return pc.if_else(
        pc.is_null(column, nan_is_null=True), None, pa.LargeListArray.from_arrays(range(len(column) + 1), column)
    )


def _parsed(text: str | None, name: str) -> list[str] | None:
    """Return a list that is written as text, as JSON or as Python prints it."""
    if text is None:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return [str(value) for value in parse(text)]
        except (ValueError, SyntaxError):
            continue
    raise DataError(f"column {name!r} holds {text!r}, which cannot be read as a list; write ['a', 'b']")


def _num_places(lists: pa.Array, flat: pa.Array) -> int | None:
    """Return C where every row holds C zeros and ones, C at least 2: what is labels to itself would be all labels."""
    lengths = pc.unique(pc.list_value_length(lists.drop_null())).to_pylist()
    kind = flat.type
    if len(lengths) != 1 or lengths[0] < 2 or pa.types.is_nested(kind) or pa.types.is_null(kind) or flat.null_count:
        return None
    written = {str(value).strip().lower() for value in pc.unique(flat).to_pylist()}
    return int(lengths[0]) if written <= {"0", "1", "0.0", "1.0", "false", "true"} else None


def _has_decimals(flat: pa.Array) -> bool:
    kind: Any = flat.type
    values = pc.unique(flat).drop_null().to_pylist() if pa.types.is_floating(kind) else []
    return any(NUMBER.fullmatch(str(value)) and value != int(value) for value in values)
