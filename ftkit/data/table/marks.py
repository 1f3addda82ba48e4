"""Columns of 0 and 1, one for each label, as one column of lists."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.errors import DataError


def joined_columns(columns: Sequence[pa.ChunkedArray], names: Sequence[str], split: str) -> pa.ChunkedArray:
    """Return columns of 0 and 1 as one column of lists: of each row 0 and 1 for every column, in their order.

    Args:
        columns: of one split.
        names: theirs, for errors.
        split: the split's name, for errors.

    Returns:
        N lists; null where one of the columns has no value.

    Raises:
        DataError: a column holds something else.
    """
    by_column = [marks(column.combine_chunks(), name, split) for column, name in zip(columns, names, strict=True)]
    is_missing = np.any([mark < 0 for mark in by_column], axis=0)
    flat = np.stack(by_column, axis=1).ravel()
    offsets = np.arange(0, len(flat) + 1, len(names), dtype=np.int32)
    return pa.chunked_array([pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), mask=pa.array(is_missing))])


def marks(column: pa.Array, name: str, split: str) -> NDArray[np.int8]:
    """Return a column of 0 and 1, however written, as int8 [N], -1 where it is empty."""
    numbers = {"": -1, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "none": -1, "nan": -1}
    coded = column.dictionary_encode() if not pa.types.is_dictionary(column.type) else column
    written = [str(value).strip().lower() for value in coded.dictionary.to_pylist()]
    strange = [text for text in written if text not in numbers]
    if strange:
        raise DataError(
            f"column {name!r} of the {split} split holds {strange[0]!r}; data.label_columns wants columns of 0 and 1"
        )
    table = np.array([*(numbers[text] for text in written), -1], dtype=np.int8)
    return np.asarray(table[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)])
