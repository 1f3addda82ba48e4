"""Numbers to predict, read from a column."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.data.label_kinds import NUMBER
from ftkit.data.rows import where
from ftkit.data.values import kind_words
from ftkit.errors import DataError


def read_numbers(rows: pa.Table, name: str) -> NDArray[np.float64]:
    """Read a column of numbers.

    Args:
        rows: N rows, whose column `label` has numbers, or texts that are numbers.
        name: the column's own name, for errors.

    Returns:
        float64 [N], NaN where a row has none.

    Raises:
        DataError: a value that is not a finite number.
    """
    column = rows["label"]
    if pa.types.is_nested(column.type) or pa.types.is_boolean(column.type):
        raise DataError(f"{where(rows, 0)}: column {name!r} holds {kind_words(column.type)}, not numbers to predict")
    values = np.array([_number(value) for value in column.to_pylist()], dtype=np.float64)
    if np.isinf(values).any():
        place = int(np.argmax(np.isinf(values)))
        raise DataError(
            f"{where(rows, place)} has {column[place].as_py()!r} in {name!r}, which is not a finite number; correct it"
        )
    return values


def _number(value: object) -> float:
    """Return a written value as a number: NaN for nothing, infinity for what is no number."""
    text = "" if value is None else str(value).strip()
    if not text or text.lower() == "nan":
        return float("nan")
    return float(text) if NUMBER.fullmatch(text) else float("inf")
