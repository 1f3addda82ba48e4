"""Which texts are nearly the same as an earlier one, by the Jaccard similarity of their sets, without comparing all.

Of two sets whose similarity is at least t, each shares at least t of its own elements with the other. So if the
elements of all sets are put in one order, one of the first (size - ceil(t * size) + 1) of each set is among the first
ones of the other too (prefix filtering: Chaudhuri, Ganti and Kaushik, ICDE 2006; Bayardo, Ma and Srikant, WWW 2007).
The rarest come first in that order, and most of those are in no other text, so that few texts are compared at all:

    t = 0.8    the cat sat on the mat by the old door    10 pairs of words, of which 10 - 8 + 1 = 3 are looked up:
                                                         old door, cat sat, mat by

Texts that share one are compared: by 512 bits of each, which bound the difference of their sets (Sandes, Teodoro and
Melo, 2020), and where that leaves room, element by element. Nothing is left to chance; where not all that share one
were compared, that is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ftkit.data.near.shingles import BITS, ROWS, Shingles, mixed
from ftkit.data.spill import Growing

MOST_COMPARED = 64
"""Texts before it with which a text is compared for each of its rare pairs. Where so many share one, they are nearly
the same and the first comparison tells, or the pair says little."""
COMMON_SHARE, COMMON_LEAST = 0.9, 100
"""Pairs that this share of at least so many texts have are a form that they share (a prompt, a signature): they say
nothing of likeness and are left out."""
_ROUNDING = 1e-9  # 0.8 * 15 is 12.000000000000002, and its ceiling must be 12
_MOST_SPLITS = 4
_MOST_COUNTERS = 2**22
_BLOCK = 2**22  # numbers in memory at a time
_PAIRS = 2**17  # at a time, of which each takes some hundred bytes
_SKETCH_BITS = 512


@dataclass(frozen=True)
class Nearest:
    """An earlier text for each of N texts, as far as one is near.

    Attributes:
        partner: int32 [splits, N], the row of a text in each split that stands earlier; -1: none is near.
        similarity: float32 [splits, N], of the two; 0 where none is near.
        is_whole: bool [splits]; False: a text may be near to one with which it was not compared.
    """

    partner: NDArray[np.int32]
    similarity: NDArray[np.float32]
    is_whole: NDArray[np.bool_]

    @classmethod
    def nothing(cls, num_splits: int, num_rows: int) -> "Nearest":
        """Return that nothing is near as yet."""
        shape = (num_splits, num_rows)
        return cls(np.full(shape, -1, np.int32), np.zeros(shape, np.float32), np.ones(num_splits, np.bool_))


def nearest(sets: Shingles, splits: NDArray[np.int8], least: float) -> Nearest:
    """Find for each text one that is near and stands earlier, in its own split and in each earlier one.

    Args:
        sets: of N texts, split by split.
        splits: the number of each text's split from 0, int8 [N], ascending.
        least: the least similarity of two near texts, above 0: elements that both have by those that either has.

    Returns:
        What was found; an empty text is near to none.

    Raises:
        DataError: there is no room on the disk.
    """
    found = Nearest.nothing(int(splits.max(initial=-1)) + 1, len(splits))
    signs = _signs(sets)
    filled = np.flatnonzero(sets.sizes > 0).astype(np.int32)
    equal = _Lists.of(signs[filled], filled, splits)
    counts = _counts(sets)
    sets = _without_common(sets, counts)
    same = _first_with_same_sign(signs, splits)
    # One of equal sets speaks for the others of its split, so that a list holds different ones alone.
    is_first = (same == np.arange(len(same))) & (sets.sizes > 0)
    entries = _entries(sets, is_first, counts, least)
    comparison = _Comparison(sets, _sketches(sets), least, found)
    for split in range(len(found.is_whole)):
        _take_equal(equal, split, found)
        for lists in entries.parts(splits):
            found.is_whole[split] &= comparison.look(lists, split)
        copies = np.flatnonzero((splits > split) & (same != np.arange(len(same))))
        for figure in (found.partner, found.similarity):
            figure[split, copies] = figure[split, same[copies]]
    return found


@dataclass(frozen=True)
class _Lists:
    """Rows that share a key, side by side, and ascending for each key.

    Attributes:
        rows: int32 [entries].
        groups: int64 [entries], the number of the key and behind it the split of the row; ascending.
        splits: int8 [entries], of each row.
    """

    rows: NDArray[np.int32]
    groups: NDArray[np.int64]
    splits: NDArray[np.int8]

    @classmethod
    def of(cls, keys: NDArray[np.uint64], rows: NDArray[np.int32], splits: NDArray[np.int8]) -> "_Lists":
        """Bring rows, ascending, together by their keys; those that are alone are left out."""
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], rows[order]
        is_new = np.ones(len(keys) + 1, np.bool_)
        is_new[1:-1] = keys[1:] != keys[:-1]
        is_alone = is_new[:-1] & is_new[1:]
        numbers: NDArray[np.int64] = np.cumsum(is_new[:-1], dtype=np.int64)[~is_alone]
        rows = rows[~is_alone]
        return cls(rows, numbers * _MOST_SPLITS + splits[rows], splits[rows])

    def before(self, split: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the rows of a split that an entry comes behind in its list begin and end, int64 [entries]."""
        wanted = self.groups - self.splits + split
        begin = np.searchsorted(self.groups, wanted, side="left")
        end = np.minimum(np.searchsorted(self.groups, wanted, side="right"), np.arange(len(self.rows)))
        return begin, np.where(self.splits < split, begin, end)


@dataclass(frozen=True)
class _Entries:
    """The keys under which rows are looked up.

    Attributes:
        keys: uint64 [entries].
        rows: int32 [entries], ascending.
    """

    keys: NDArray[np.uint64]
    rows: NDArray[np.int32]

    def parts(self, splits: NDArray[np.int8]) -> Iterator[_Lists]:
        """Yield the lists of all keys, as many at a time as memory should hold."""
        num_parts = len(self.keys) // _BLOCK + 1
        for part in range(num_parts):
            chosen = self.keys % np.uint64(num_parts) == part
            yield _Lists.of(self.keys[chosen], self.rows[chosen], splits)


@dataclass(frozen=True)
class _Comparison:
    """Compares texts, and writes down what is near.

    Attributes:
        sets: of N texts.
        sketches: of them, uint64 [N, `_SKETCH_BITS` / 64].
        least: the least similarity of two near texts.
        found: gets what is near.
    """

    sets: Shingles
    sketches: NDArray[np.uint64]
    least: float
    found: Nearest

    def look(self, lists: _Lists, split: int) -> bool:
        """Compare the rows of lists with those of a split before them, the last first; return whether with all."""
        begin, end = lists.before(split)
        partner = self.found.partner[split]
        active = np.flatnonzero(end > begin)
        for back in range(1, MOST_COMPARED + 1):
            active = active[(partner[lists.rows[active]] < 0) & (end[active] - back >= begin[active])]
            for start in range(0, len(active), _PAIRS):
                some = active[start : start + _PAIRS]
                self._compare(lists.rows[some], lists.rows[end[some] - back], split)
        return not ((partner[lists.rows[active]] < 0) & (end[active] - MOST_COMPARED > begin[active])).any()

    def _compare(self, rows: NDArray[np.int32], others: NDArray[np.int32], split: int) -> None:
        """Compare rows with others, int32 [pairs] both."""
        both = self._may_be_near(rows, others)
        pairs = np.unique(rows[both].astype(np.int64) << 32 | others[both])
        partner, similarity = self.found.partner[split], self.found.similarity[split]
        for row, other in zip((pairs >> 32).tolist(), (pairs & (2**32 - 1)).tolist(), strict=True):
            if partner[row] < 0:
                share = _jaccard(self.sets.of(row), self.sets.of(other))
                if share >= self.least - _ROUNDING:
                    partner[row], similarity[row] = other, share

    def _may_be_near(self, rows: NDArray[np.int32], others: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Tell which pairs may be near: each bit in which two sketches differ is an element that one set alone has."""
        sizes = self.sets.sizes
        differing = np.bitwise_count(self.sketches[rows] ^ self.sketches[others]).sum(axis=1, dtype=np.int64)
        differing = np.maximum(differing, abs(sizes[rows] - sizes[others]))
        most = (1 - self.least) / (1 + self.least) * (sizes[rows] + sizes[others])
        may: NDArray[np.bool_] = differing <= most + _ROUNDING
        return may


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    together = np.sort(np.concatenate([one, other]))
    num_both = int((together[1:] == together[:-1]).sum())
    return num_both / (len(one) + len(other) - num_both)


def _take_equal(lists: _Lists, split: int, found: Nearest) -> None:
    """Write down the last row before each that has an equal set."""
    begin, end = lists.before(split)
    has = end > begin
    found.partner[split, lists.rows[has]] = lists.rows[end[has] - 1]
    found.similarity[split, lists.rows[has]] = 1.0


def _signs(sets: Shingles) -> NDArray[np.uint64]:
    """Return a number for the set of each text, uint64 [N]: equal sets, equal numbers."""
    signs = np.zeros(len(sets.offsets) - 1, np.uint64)
    for first, values, places in sets.chunks():
        np.add.at(signs, first + places.astype(np.int64), mixed(values))
    return signs


def _first_with_same_sign(signs: NDArray[np.uint64], splits: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return for each text the first one of its split that has the same sign, int64 [N]."""
    order = np.lexsort((signs, splits))
    ordered = np.stack([splits[order].astype(np.uint64), signs[order]])
    is_new = np.concatenate([[True], (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)])[: len(signs)]
    first = np.empty(len(signs), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(is_new, np.arange(len(signs)), 0))]
    return first


def _counts(sets: Shingles) -> NDArray[np.int64]:
    """Return how many texts have each element, or one that falls on the same counter; a power of two of counters."""
    num = min(_MOST_COUNTERS, 1 << len(sets.values).bit_length())
    counts = np.zeros(num, np.int64)
    for start in range(0, len(sets.values), _BLOCK):
        counts += np.bincount(_counter(sets.values[start : start + _BLOCK], counts), minlength=num)
    return counts


def _counter(values: NDArray[np.uint64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return (values & np.uint64(len(counts) - 1)).astype(np.int64)


def _without_common(sets: Shingles, counts: NDArray[np.int64]) -> Shingles:
    """Leave out what nearly all texts have."""
    num_rows = len(sets.offsets) - 1
    is_common = counts >= COMMON_SHARE * num_rows
    if num_rows < COMMON_LEAST or not is_common.any():
        return sets
    values, sizes = Growing(np.uint64), Growing(np.int64)
    for first, own, places in sets.chunks():
        stays = ~is_common[_counter(own, counts)]
        values.add(own[stays])
        sizes.add(np.bincount(places[stays].astype(np.int64), minlength=min(ROWS, num_rows - first)))
    return Shingles(values.array(), np.concatenate([[0], np.cumsum(sizes.array())]))


def _entries(sets: Shingles, is_first: NDArray[np.bool_], counts: NDArray[np.int64], least: float) -> _Entries:
    """Return the rarest elements of each text, as many as must hold one that a near text has among its own."""
    # In the order of elements the power of two of their count comes first; one that is counted once is alone.
    levels = np.floor(np.log2(np.maximum(counts, 1))).astype(np.uint64)
    keys, rows = Growing(np.uint64), Growing(np.int32)
    for first, values, places in sets.chunks():
        own = slice(first, first + ROWS)
        sizes = sets.sizes[own]
        ordered = np.sort(places << np.uint64(BITS + 5) | levels[_counter(values, counts)] << np.uint64(BITS) | values)
        prefix = sizes - np.ceil(least * sizes - _ROUNDING).astype(np.int64) + 1
        place = places.astype(np.int64)  # which are ascending, before and after
        rank = np.arange(len(values)) - (np.cumsum(sizes) - sizes)[place]
        key = ordered & np.uint64(2 ** (BITS + 5) - 1)
        looked_up = (rank < prefix[place]) & is_first[own][place] & (key >> np.uint64(BITS) > 0)
        keys.add(key[looked_up])
        rows.add(first + place[looked_up])
    return _Entries(keys.array(), rows.array())


def _sketches(sets: Shingles) -> NDArray[np.uint64]:
    """Return 512 bits of each text: whether an odd number of its elements falls on each."""
    num_rows = len(sets.offsets) - 1
    sketches = np.empty((num_rows, _SKETCH_BITS // 64), np.uint64)
    for first, values, places in sets.chunks():
        num = min(ROWS, num_rows - first)
        bits = places * np.uint64(_SKETCH_BITS) + (values >> np.uint64(24)) % np.uint64(_SKETCH_BITS)
        is_odd = np.bincount(bits.astype(np.int64), minlength=num * _SKETCH_BITS) % 2
        packed = np.packbits(is_odd.astype(np.uint8)).view(np.uint64)
        sketches[first : first + num] = packed.reshape(num, -1)
    return sketches
