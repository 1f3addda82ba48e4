"""What a text is made of, for a comparison with others: the set of its pairs of neighbouring words."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ftkit.data.chunks import chunks
from ftkit.data.spill import Growing
from ftkit.data.table.rows import iterate

BITS = 48
"""Bits of a pair's number: two texts of a thousand pairs each have two that fall together once in 10**8 comparisons."""
ROWS = 2 ** (64 - BITS - 5)
"""Rows at a time: a row of them, five bits more and a pair are one number, which sorts fast."""
_BETWEEN = r"[^\p{L}\p{M}\p{N}]+"
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""Scripts that are written without spaces between words: each character is a word here."""
_ROLE_KEYS = {"role", "from"}  # of a chat's message: its texts are compared, not who says them
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd, of no pattern (as in splitmix)


@dataclass(frozen=True)
class Shingles:
    """The sets of N texts.

    Attributes:
        values: uint64 [sum of sizes], a pair of neighbouring words each, ascending in each text.
        offsets: int64 [N + 1], where the set of each text begins and the last one ends.
    """

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Pairs of each text, int64 [N]."""
        return np.diff(self.offsets)

    def of(self, row: int) -> NDArray[np.uint64]:
        """Return the set of a text."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def chunks(self) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.uint64]]]:
        """Yield the first of at most `ROWS` texts, their values, and the place of each value's text among them."""
        for first in range(0, len(self.offsets) - 1, ROWS):
            bounds = self.offsets[first : first + ROWS + 1]
            yield (
                first,
                self.values[bounds[0] : bounds[-1]],
                np.repeat(np.arange(len(bounds) - 1, dtype=np.uint64), np.diff(bounds)),
            )


def shingles(tables: Iterable[pa.Table]) -> Shingles:
    """Return what the texts of some tables are made of.

    A text is the words of all its parts, in small letters and without punctuation; its set has each word together with
    the word before it, and the first word with nothing. So a text of as many words as it has different pairs has a set
    of that size, and one without words an empty set.

    Args:
        tables: that `select_rows` gave, one after the other.

    Raises:
        DataError: there is no room on the disk.
    """
    values, sizes = Growing(np.uint64), Growing(np.int64)
    for texts in chunks(_texts(tables), len, ROWS):
        own, counts = _sets(texts)
        values.add(own)
        sizes.add(counts)
    return Shingles(values.array(), np.concatenate([[0], np.cumsum(sizes.array())]))


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers whose every bit depends on all bits of the given ones (the end of splitmix64), uint64 [N]."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return result


def _texts(tables: Iterable[pa.Table]) -> Iterator[str]:
    for table in tables:
        for parts in iterate(table, "first", "second"):
            yield "\n".join(text for part in parts for text in _strings(part))


def _strings(value: Any) -> Iterator[str]:
    """Yield all texts in a value: itself, or those of a list of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in _ROLE_KEYS:
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _sets(texts: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the sets of at most `ROWS` texts, one behind the other, and their sizes."""
    words, places = _words([text.casefold() for text in texts])
    if not len(words):
        return np.empty(0, np.uint64), np.zeros(len(texts), np.int64)
    coded = words.dictionary_encode()
    numbers = np.array([_number(word) for word in coded.dictionary.to_pylist()], np.uint64)
    word = numbers[coded.indices.to_numpy()]
    before = np.where(np.diff(places, prepend=-1) > 0, np.uint64(0), np.roll(word, 1))
    pairs = mixed(before * _FIRST + word * _SECOND) >> np.uint64(64 - BITS)
    keys = np.sort(places.astype(np.uint64) << np.uint64(BITS) | pairs)
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]  # np.unique takes fifty times as long for these
    sizes = np.bincount((keys >> np.uint64(BITS)).astype(np.int64), minlength=len(texts))
    return keys & np.uint64(2**BITS - 1), sizes


def _words(texts: list[str]) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the words of all texts, [words], and the place of the text of each, ascending."""
    column = pa.array(texts, pa.large_string())
    if not all(text.isascii() for text in texts):
        column = pc.replace_substring_regex(column, f"({_UNSPACED})", r" \1 ")
    lists = pc.split_pattern_regex(column, _BETWEEN)
    words, places = lists.flatten(), pc.list_parent_indices(lists)
    is_word = pc.not_equal(words, "")  # a text begins and ends with one that is empty, where a sign stands there
    return words.filter(is_word), places.filter(is_word).to_numpy()


def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
