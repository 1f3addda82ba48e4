"""Decide which kind of labels a column holds: one class of a text, several labels, or a number to predict."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ftkit.config.tree import DataConfig, LabelKind
from ftkit.data.table.rows import where
from ftkit.errors import DataError

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_WHOLE = re.compile(r"[-+]?\d+(\.0*)?")
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_LIST = re.compile(r"\[.*\]", re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """The kind of a dataset's labels.

    Attributes:
        kind: of every split.
        reason: why, for the report.
    """

    kind: LabelKind
    reason: str


def choose_kind(config: DataConfig, rows: pa.Table, name: str, *, has_names: bool) -> Choice:
    """Choose the kind of labels: as the configuration says, else by what the training split's column holds.

    Args:
        config: `label_kind`, `label_columns` and `label_separator`.
        rows: the training split as it was read; its column `label` decides.
        name: the column's name, for errors.
        has_names: whether names of classes are stored with the column.

    Returns:
        The kind, and why.

    Raises:
        DataError: the column holds something else than was asked for, or might be several kinds.
    """
    is_list = holds_lists(rows["label"].type)
    if config.label_kind != "auto":
        if is_list and config.label_kind != "multi":
            raise DataError(
                f"column {name!r} holds lists of labels, and data.label_kind={config.label_kind} wants one value a "
                "text; give --set data.label_kind=multi, or name another column with --label-column"
            )
        return Choice(config.label_kind, "as data.label_kind says")
    if config.label_columns is not None:
        return Choice("multi", "as data.label_columns says")
    if config.label_separator is not None:
        return Choice("multi", f"texts are cut at {config.label_separator!r}, as data.label_separator says")
    if is_list:
        return Choice("multi", "the column holds lists")
    return Choice("single", "the column names its classes") if has_names else _by_values(rows, name)


def looks_like_lists(values: Sequence[str]) -> bool:
    """Return whether every text is a list in brackets, as pandas writes a column of lists into a CSV."""
    return bool(values) and all(_LIST.fullmatch(value) for value in values)


def _by_values(rows: pa.Table, name: str) -> Choice:
    """Choose by the distinct values, written as texts."""
    values = _distinct(rows["label"])
    if looks_like_lists(values):
        raise DataError(
            f"column {name!r} holds lists written as text, such as {values[0]!r}; --set data.label_kind=multi reads "
            "each as several labels, --set data.label_kind=single as one"
        )
    decimals = [value for value in values if NUMBER.fullmatch(value) and not _WHOLE.fullmatch(value)]
    words = [value for value in values if not NUMBER.fullmatch(value)]
    if decimals and words:
        raise DataError(
            f"column {name!r} holds numbers with decimals such as {_placed(rows, decimals[0])} and words such as "
            f"{_placed(rows, words[0])}; correct one of them, or make each a class of its own with "
            "data.label_kind=single"
        )
    if decimals:
        reason = "the column holds numbers with decimals; --set data.label_kind=single makes classes"
        return Choice("regression", reason)
    if words and all(DECIMAL_COMMA.fullmatch(value) for value in words):
        raise DataError(
            f"column {name!r} holds {words[0]!r} and its like; say whether that is a number with a decimal comma "
            "(data.label_kind=regression), several labels (data.label_separator) or a class (data.label_kind=single)"
        )
    if words:
        return Choice("single", "the column holds words")
    return Choice("single", "the column holds whole numbers; --set data.label_kind=regression predicts them as numbers")


def holds_lists(kind: pa.DataType) -> bool:
    """Return whether the values of a column are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _placed(rows: pa.Table, value: str) -> str:
    """Return a value in quotes, and where it stands first."""
    place = next(place for place, label in enumerate(rows["label"].to_pylist()) if str(label).strip() == value)
    return f"{value!r} ({where(rows, place)})"


def _distinct(column: pa.ChunkedArray) -> list[str]:
    """Return the distinct values that are not empty as texts; none of what is not a value, such as an object."""
    if pa.types.is_nested(column.type):
        return []
    texts = (str(value).strip() for value in pc.unique(column).to_pylist() if value is not None and value == value)
    return [text for text in texts if text]
