"""Numbers to predict, read from a column."""

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.data.findings import Finding, warning
from ftkit.data.labels.kinds import DECIMAL_COMMA, NUMBER
from ftkit.data.reading.values import is_text, kind_words
from ftkit.data.table.rows import where
from ftkit.errors import DataError

_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}\.\d{3}")
_LARGEST = float(np.sqrt(np.finfo(np.float32).max))
"""The largest number whose squared error the loss can hold."""


def read_numbers(rows: pa.Table, name: str) -> NDArray[np.float64]:
    """Read a column of numbers.

    Args:
        rows: N rows, whose column `label` has numbers, or texts that are numbers, all with decimal points or all with
            decimal commas.
        name: the column's own name, for errors.

    Returns:
        float64 [N], NaN where a row has none.

    Raises:
        DataError: a value that is not a finite number.
    """
    column = rows["label"]
    if pa.types.is_nested(column.type) or pa.types.is_boolean(column.type):
        raise DataError(f"{where(rows, 0)}: column {name!r} holds {kind_words(column.type)}, not numbers to predict")
    texts = ["" if value is None else str(value).strip() for value in column.to_pylist()]
    has_commas = _has_decimal_commas(texts)
    values = np.array([_number(text.replace(",", ".") if has_commas else text) for text in texts], dtype=np.float64)
    if np.isinf(values).any():
        place = int(np.argmax(np.isinf(values)))
        raise DataError(
            f"{where(rows, place)} has {column[place].as_py()!r} in {name!r}, which is not a finite number; correct it"
        )
    if (large := np.abs(values) > _LARGEST).any():
        place = int(np.argmax(large))
        raise DataError(
            f"{where(rows, place)} has {values[place]:g} in {name!r}, whose square is beyond single precision; write "
            "the numbers in a larger unit"
        )
    return values


def thousands(rows: pa.Table, name: str) -> list[Finding]:
    """Find numbers whose points may stand before thousands: written as text, each point is before three digits.

    Args:
        rows: as `read_numbers`.
        name: the column's own name.
    """
    if not is_text(rows["label"].type):
        return []
    pointed = [text for value in rows["label"].to_pylist() if value is not None and "." in (text := value.strip())]
    if not pointed or not all(_THOUSANDS.fullmatch(text) for text in pointed):
        return []
    text = f"the point in {name!r} is read as a decimal point: {pointed[0]!r} is {float(pointed[0]):g}"
    return [warning(text, "if it stands before thousands, write the numbers without it")]


def _has_decimal_commas(texts: list[str]) -> bool:
    """Return whether commas are decimal points: beside points, or before three digits each, they may be thousands."""
    commas = [text for text in texts if "," in text]
    are_decimal = all(DECIMAL_COMMA.fullmatch(text) for text in commas) and not any("." in text for text in texts)
    return are_decimal and any(len(text.partition(",")[2]) != 3 for text in commas)


def _number(text: str) -> float:
    """Return a written value as a number: NaN for nothing, infinity for what is not a number."""
    if not text or text.lower() == "nan":
        return float("nan")
    return float(text) if NUMBER.fullmatch(text) else float("inf")
