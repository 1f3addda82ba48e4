"""Labels as they are written to labels as they are trained: 0 to n - 1, each with a name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.data.reading.values import is_text, kind_words
from ftkit.errors import DataError

MAX_LABELS = 1000
"""More distinct labels than this are taken for numbers to predict, or for a column of identifiers."""
MAX_FRACTIONS = 50
"""More distinct labels with decimals than this are taken for numbers to predict."""
MISSING = -1
"""The number of a label that is not there; `datasets` writes it into the hidden labels of test splits."""

Label = int | str
_INTEGER = re.compile(r"-?(0|[1-9]\d*)(\.0+)?")
_FRACTION = re.compile(r"-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_GENERIC = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class RawLabels:
    """One split's labels as they are written.

    Attributes:
        codes: int64 [N], places in `values`; -1 where the label is empty.
        values: the distinct labels; whole numbers are int whether written as text or not.
        spellings: of the labels that are written in several ways, such as with a space behind: those ways.
    """

    codes: NDArray[np.int64]
    values: tuple[Label, ...]
    spellings: Mapping[Label, tuple[str, ...]] = field(default_factory=dict)

    @property
    def present(self) -> set[Label]:
        """The distinct labels that occur."""
        return {self.values[code] for code in np.unique(self.codes) if code >= 0}


@dataclass(frozen=True)
class LabelCoder:
    """The numbers and the names of labels.

    Attributes:
        names: the name of label i at place i.
        numbers: the label as it is written to its number.
    """

    names: tuple[str, ...]
    numbers: Mapping[Label, int]

    def encode(self, raw: RawLabels, seen: Iterable[Label], split: str) -> NDArray[np.int64]:
        """Return the numbers of labels.

        Args:
            raw: labels as they are written.
            seen: the labels of the training split.
            split: the name of the split, for the error.

        Returns:
            int64 [N], `MISSING` where there is no label.

        Raises:
            DataError: a label that does not occur in the training split.
        """
        known = set(seen)
        for label in sorted(raw.present, key=str):
            if label not in known and label != MISSING:
                raise DataError(
                    f"label {str(label)!r} occurs in the {split} split, but never in the training split, which has "
                    f"{_listed(sorted(map(str, known)))}; correct it, or add training rows that have it"
                )
        table = [self.numbers.get(label, MISSING) for label in raw.values]
        return np.array([*table, MISSING], dtype=np.int64)[raw.codes]  # code -1 reads the last entry


def read_labels(column: pa.ChunkedArray, name: str, classes: Sequence[str] | None) -> RawLabels:
    """Read a column of labels.

    Args:
        column: texts, whole numbers, numbers with decimals, or booleans.
        name: the column's name, for the error.
        classes: the names that are stored with the column, whose texts then are names as they stand, or None.

    Returns:
        The labels; empty texts, nulls and NaN are missing.

    Raises:
        DataError: the values are not labels.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    if not (is_text(kind) or any(check(kind) for check in known)):
        raise DataError(
            f"column {name!r} holds {kind_words(kind)}, not labels; a label is a word, a number, or a list of such"
        )
    coded = (
        column.combine_chunks() if pa.types.is_dictionary(column.type) else column.combine_chunks().dictionary_encode()
    )
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    places: dict[Label, int] = {}
    written: dict[Label, list[str]] = {}
    table = []
    for value in coded.dictionary.to_pylist():
        label = _label(value, classes)
        table.append(MISSING if label is None else places.setdefault(label, len(places)))
        if label is not None:
            written.setdefault(label, []).append(str(value))
    if len(places) > MAX_LABELS or sum(map(_is_fraction, places)) > MAX_FRACTIONS:
        raise DataError(_too_many(name, list(places)))
    spellings = {label: tuple(ways) for label, ways in written.items() if len(ways) > 1}
    return RawLabels(np.array([*table, MISSING], dtype=np.int64)[codes], tuple(places), spellings)


def choose_names(
    raw: RawLabels, given: Sequence[str] | None, classes: Sequence[str] | None, least: int = 2
) -> LabelCoder:
    """Number and name the labels of the training split.

    Whole numbers are ordered by size, booleans and texts by alphabet, unless names are given.

    Args:
        raw: the training split's labels.
        given: names in the order of the numbers, from the configuration, or None.
        classes: names that are stored with the column, or None.
        least: how many labels there must be.

    Returns:
        The numbers and names of the labels.

    Raises:
        DataError: one label only, or given names that do not belong to the labels.
    """
    present = raw.present
    if given is None or len(given) != len(present):
        present = present - {MISSING}  # -1 is a class of its own only where it has a name
    if len(present) < least:
        found = f"only the label {str(next(iter(present)))!r}" if present else "no label at all"
        beside = f" beside {MISSING}, which means no label unless data.label_names names it" * (MISSING in raw.present)
        raise DataError(f"the training split has {found}{beside}; classification needs two labels or more")
    if given is not None:
        return _named(present, given)
    if classes is not None:
        return LabelCoder(tuple(classes), {name: number for number, name in enumerate(classes)})
    ordered = sorted(present, key=_order(present))
    return LabelCoder(tuple(map(str, ordered)), {label: number for number, label in enumerate(ordered)})


def match_model(coder: LabelCoder, model: tuple[str, ...] | None, *, may_lack: bool = False) -> LabelCoder:
    """Put labels into the order of a model that already has a head for them.

    Args:
        coder: the data's numbers and names.
        model: the names in the model's configuration, or None for a model without a head.
        may_lack: the data is only scored, and need not have every label.

    Returns:
        The data's names where the model's are generic (`LABEL_0`, ...), else the same names in the model's order.

    Raises:
        DataError: the names are not the same.
    """
    if model is None or model == coder.names:
        return coder
    if len(model) == len(coder.names) and all(_GENERIC.fullmatch(name) for name in model):
        return coder
    if set(model) != set(coder.names) and not (may_lack and set(coder.names) < set(model)):
        cure = (
            "leave rows with other labels out"
            if may_lack
            else "draw a new head for the data's with --set model.new_head=true"
        )
        raise DataError(
            f"the data's labels are {_listed(coder.names)}, the model's are {_listed(model)}; name them alike with "
            f"--set 'data.label_names=[...]', or {cure}"
        )
    return LabelCoder(model, {label: model.index(coder.names[number]) for label, number in coder.numbers.items()})


def _named(present: set[Label], given: Sequence[str]) -> LabelCoder:
    if len(set(given)) < len(given):
        raise DataError(f"data.label_names has a name twice: {_listed(given)}; give every label its own")
    if {str(label) for label in present} <= set(given):
        numbers = {name: number for number, name in enumerate(given)}
        return LabelCoder(tuple(given), {label: numbers[str(label)] for label in present})
    whole = sorted(label for label in present if isinstance(label, int))
    if len(whole) == len(present):
        if whole[0] >= 0 and whole[-1] < len(given):
            return LabelCoder(tuple(given), {label: label for label in whole})
        if len(whole) == len(given):
            return LabelCoder(tuple(given), {label: number for number, label in enumerate(whole)})
    raise DataError(
        f"data.label_names has {len(given)} names ({_listed(given)}), the training split has the labels "
        f"{_listed(sorted(map(str, present)))}; give one name for every label"
    )


def _label(value: Any, classes: Sequence[str] | None) -> Label | None:
    """Return what a written value means: an int for whole numbers, a text for all else, None for nothing."""
    if value is None or value != value:  # NaN is the one value that differs from itself
        return None
    if classes is not None and isinstance(value, str):
        return value
    text = str(value).strip()
    if isinstance(value, bool):
        return text.lower()
    if _INTEGER.fullmatch(text):
        return int(text.partition(".")[0])  # by way of float, large numbers would fall together
    return text or None


def _is_fraction(label: Label) -> bool:
    return isinstance(label, str) and _FRACTION.fullmatch(label) is not None


def _order(labels: set[Label]) -> Any:
    """Return a sort key: by size where all are numbers, else by alphabet."""
    numbers = all(isinstance(label, int) or _is_fraction(label) for label in labels)
    return float if numbers else str


def _too_many(name: str, values: Sequence[Label]) -> str:
    numbers = all(isinstance(value, int) or _is_fraction(value) for value in values)
    guess = "a regression target" if numbers else "texts or identifiers"
    as_numbers = ", predict the numbers with --set data.label_kind=regression, or turn them into a few classes"
    cure = as_numbers if numbers else ""
    return (
        f"column {name!r} has {len(values):,} different values such as {str(values[0])!r}: that looks like {guess}, "
        f"not like labels; name the right one with --label-column{cure}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
