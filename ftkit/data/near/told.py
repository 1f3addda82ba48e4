"""What is told of texts that are nearly the same: how many rows, which, and a few of them side by side."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.config.tree import SPLITS
from ftkit.data.findings import Finding, note, warning
from ftkit.data.near.pairs import nearest
from ftkit.data.near.shingles import shingles
from ftkit.data.table.rows import iterate
from ftkit.units import counted

_SHOWN_CHARACTERS, _SHOWN_BEFORE = 240, 60
"""Of a text that is shown, and of those before the first difference."""
_CURE = "leave these rows out of one of the splits (`ftkit data --json` names them all)"
_CURE_WHERE_MADE = (
    "to leave the later ones out: --set data.near_duplicates=drop; or name what belongs together with --group-column"
)


@dataclass(frozen=True)
class NearPair:
    """Two rows whose texts are nearly the same.

    Attributes:
        row: where the later one stands, such as `test.csv line 12`.
        other: where the earlier one stands.
        similarity: the share of their pairs of neighbouring words that both have.
    """

    row: str
    other: str
    similarity: float

    @property
    def alike(self) -> str:
        """Return the similarity in words; `100 % alike` are those with the very same pairs of words."""
        return f"{int(100 * self.similarity)} % alike"


@dataclass(frozen=True)
class NearExample(NearPair):
    """Two such rows with their texts, each from a little before the first difference.

    Attributes:
        text: of the later row.
        other_text: of the earlier one.
    """

    text: str
    other_text: str


@dataclass(frozen=True)
class NearTexts:
    """The rows of a split whose texts are nearly those of earlier rows, in it or in an earlier split, and not equal.

    Attributes:
        later: the split.
        earlier: the split of the earlier rows.
        num_rows: of the later split, near or not.
        pairs: each row that is near, with an earlier one.
        examples: the pairs that are least, middling and most alike.
        are_made: both splits were made of one, so that `data.near_duplicates` keeps such rows out of it.
        is_whole: False: there may be more, since many texts share the same rare pairs of words.
    """

    later: str
    earlier: str
    num_rows: int
    pairs: tuple[NearPair, ...]
    examples: tuple[NearExample, ...]
    are_made: bool
    is_whole: bool

    def finding(self) -> Finding:
        """Return what its owner should know."""
        least = "" if self.is_whole else "at least "
        such = f"such as {self.examples[0].row} and {self.examples[0].other} ({self.examples[0].alike})"
        rows = counted(len(self.pairs), "row")
        if self.later == self.earlier:
            return note(f"{self.later}: {least}{rows} nearly the same as an earlier one, {such}")
        earlier = "training" if self.earlier == "train" else self.earlier
        share = f"{least}{len(self.pairs) / self.num_rows:.1%} of the {self.later} texts"
        told = f"{share} are nearly those of the {earlier} split ({rows}), {such}; scores will flatter"
        return warning(told, _CURE_WHERE_MADE if self.are_made else _CURE)


def near_texts(
    rows: Mapping[str, pa.Table], keys: Mapping[str, NDArray[np.uint64]], least: float, made: Set[str]
) -> tuple[NearTexts, ...]:
    """Find the texts that are nearly the same.

    Args:
        rows: split to a table that `select_rows` gave.
        keys: split to a number for the texts of each row; equal texts, equal numbers.
        least: the least similarity of two near texts.
        made: the splits that were made of one, and that one, where near texts may still be left out before that.

    Returns:
        For each split and itself or an earlier one where there are any.

    Raises:
        DataError: there is no room on the disk.
    """
    order = [split for split in SPLITS if split in rows]
    starts = np.concatenate([[0], np.cumsum([rows[split].num_rows for split in order])])
    splits = np.repeat(np.arange(len(order), dtype=np.int8), np.diff(starts))
    found = nearest(shingles(rows[split] for split in order), splits, least)
    told = []
    for two, later in enumerate(order):
        own = slice(starts[two], starts[two + 1])
        for one, earlier in enumerate(order[: two + 1]):
            is_equal = _repeats(keys[later]) if one == two else np.isin(keys[later], keys[earlier])
            places = np.flatnonzero((found.partner[one, own] >= 0) & ~is_equal)
            if len(places):
                others = found.partner[one, own][places] - starts[one]
                alike = found.similarity[one, own][places]
                pairs = _pairs(rows[later], places, rows[earlier], others, alike)
                shown = [_example(pairs[n], rows[later], places[n], rows[earlier], others[n]) for n in _shown(alike)]
                are_made, is_whole = {later, earlier} <= made, bool(found.is_whole[one])
                told.append(NearTexts(later, earlier, len(is_equal), pairs, tuple(shown), are_made, is_whole))
    return tuple(told)


def _repeats(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tell which rows have the text of an earlier one."""
    repeats = np.ones(len(keys), np.bool_)
    repeats[np.unique(keys, return_index=True)[1]] = False
    return repeats


def _pairs(
    rows: pa.Table,
    places: NDArray[np.int64],
    other_rows: pa.Table,
    other_places: NDArray[np.int64],
    similarity: NDArray[np.float32],
) -> tuple[NearPair, ...]:
    words, other_words = _where(rows, places), _where(other_rows, other_places)
    alike = np.where(similarity < 1, np.minimum(np.round(similarity.astype(np.float64), 3), 0.999), 1.0)
    return tuple(map(NearPair, words, other_words, alike.tolist()))


def _where(rows: pa.Table, places: NDArray[np.int64]) -> list[str]:
    chosen = rows.select(["file", "row"]).take(pa.array(places))
    return [f"{file} {row}" for file, row in iterate(chosen, "file", "row")]


def _shown(similarity: NDArray[np.float32]) -> list[int]:
    order = np.argsort(similarity, kind="stable").tolist()
    return list(dict.fromkeys([order[0], order[len(order) // 2], order[-1]]))


def _example(pair: NearPair, rows: pa.Table, place: int, other_rows: pa.Table, other_place: int) -> NearExample:
    text, other = _joined(rows, place), _joined(other_rows, other_place)
    differing = (place for place, (one, two) in enumerate(zip(text, other, strict=False)) if one != two)
    parting = next(differing, min(len(text), len(other)))
    first = text.rfind(" ", 0, max(0, parting - _SHOWN_BEFORE)) + 1
    return NearExample(pair.row, pair.other, pair.similarity, _window(text, first), _window(other, first))


def _joined(rows: pa.Table, place: int) -> str:
    (parts,) = iterate(rows.slice(place, 1), "first", "second")
    return "\n".join(part if isinstance(part, str) else str(part) for part in parts)


def _window(text: str, first: int) -> str:
    shown = text[first : first + _SHOWN_CHARACTERS]
    before, behind = "[...] " if first else "", " [...]" if len(text) > first + _SHOWN_CHARACTERS else ""
    return f"{before}{shown}{behind}"
