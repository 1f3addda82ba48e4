"""Tell columns by what they hold: the label from the text of two, and those that may be a label each."""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ftkit.config.tree import DataConfig, Task
from ftkit.data.findings import Finding, note
from ftkit.data.reading.shards import Split
from ftkit.data.reading.values import is_text
from ftkit.data.table.columns import LABELS, SCORES, TEXTS
from ftkit.data.table.fields import gather

_MAX_LABELS = 50
_ROWS_PER_LABEL = 3  # fewer, and a column of labels is not told from one of short texts
_SWITCH = {"0", "1"}
_FIRST = 1000
_NUMBER = r"^\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)\s*$"


class _Sight(NamedTuple):
    """The appearance of a column."""

    is_label: bool
    is_text: bool


def name_two_columns(config: DataConfig, task: Task, train: Split) -> tuple[DataConfig, list[Finding]]:
    """Name the columns of a table that has two, neither of them known by its name.

    The label is the column of few values that come again and again, the text one of many values, most of them once.
    Where a column's name is one of its values, the first row was taken for the header, so nothing is named.

    Args:
        config: the data section.
        task: only classification tells two columns apart by what they hold.
        train: the training split.

    Returns:
        The section with `text_column` and `label_column`, and a finding that says so; as it is where a column is named
        already, or where a doubt is left.
    """
    names = train.column_names
    given = (
        config.text_column,
        config.label_column,
        config.text_pair_column,
        config.label_columns,
        config.group_column,
    )
    if task != "sequence-classification" or len(names) != 2 or any(given):
        return config, []
    known = {name: name.strip().lower() for name in names}
    if any(word in (*LABELS, *SCORES) for word in known.values()) and any(word in TEXTS for word in known.values()):
        return config, []
    sights = {name: _look(gather(train, name), name) for name in names}
    labels = [name for name in names if sights[name].is_label]
    texts = [name for name in names if sights[name].is_text]
    if len(labels) != 1 or len(texts) != 1 or labels == texts:
        return config, []
    named = config.model_copy(update={"text_column": texts[0], "label_column": labels[0]})
    told = f"{texts[0]!r} is taken for the text and {labels[0]!r} for the label, by what they hold"
    return named, [note(told, "name them with --text-column and --label-column where that is wrong")]


def switch_columns(train: Split) -> list[str]:
    """Return the columns that hold 0 and 1 alone, each of which may be a label; none where there is one alone.

    Args:
        train: the training split.
    """
    found = [name for name in train.column_names if _is_switch(gather(train, name))]
    return found if len(found) > 1 else []


def _is_switch(column: pa.ChunkedArray | None) -> bool:
    if column is None or not (is_text(column.type) or pa.types.is_integer(column.type)):
        return False
    if not _words(column.slice(0, _FIRST).drop_null()) <= _SWITCH:  # no more is looked at of a column of texts
        return False
    return _words(pc.unique(column.drop_null()).slice(0, len(_SWITCH) + 1)) == _SWITCH


def _words(values: pa.ChunkedArray | pa.Array) -> set[str]:
    return {str(value).strip() for value in values.to_pylist()}


def _look(column: pa.ChunkedArray | None, name: str) -> _Sight:
    if column is None or not (is_text(column.type) or _may_be_label(column.type)):
        return _Sight(is_label=False, is_text=False)
    filled = column.drop_null()
    values = pc.unique(filled)
    is_header = name.strip() in {str(value).strip() for value in values.slice(0, 1000).to_pylist()}
    is_label = 1 < len(values) <= min(_MAX_LABELS, len(filled) // _ROWS_PER_LABEL) and not is_header
    is_many = is_text(column.type) and len(values) > len(filled) // 2
    is_number = is_many and pc.all(pc.match_substring_regex(values.slice(0, 1000), _NUMBER)).as_py()
    return _Sight(is_label, is_many and not is_number and not is_header)


def _may_be_label(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))
