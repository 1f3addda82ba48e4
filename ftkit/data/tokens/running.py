"""A running text, such as a book, tokenized as a whole without being held as a whole.

Windows of the text overlap, and one goes on where the other ends at a border between tokens that both have:

    window 1   ... Call me | Ish | mael | . | Some
    window 2                ▁Ish | mael | . | Some | years | ago ...
                                        ^ the same tokens before and after: here the second takes over

So what a tokenizer does at the beginning of a text (a space before it) or at its end happens nowhere in between.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ftkit.data.tokens.tokenizer import Located, TextTokenizer

_PIECE_CHARACTERS = 2**13  # the library takes a half more time over texts of eight times this length
_OVERLAP_CHARACTERS = 2**8
_AGREEING_TOKENS = 4
_NUM_AT_ONCE = 64


@dataclass(frozen=True)
class _Window:
    """A part of a text.

    Attributes:
        text: its characters.
        tokens: int32 [T].
        starts: int64 [T], the first character of each token.
        stops: int64 [T], the character after its last.
        first: the first token that no earlier window has.
    """

    text: str
    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    first: int = 0

    @classmethod
    def of(cls, text: str, located: Located, first: int = 0) -> "_Window":
        return cls(text, located.tokens, located.spans[:, 0], located.spans[:, 1], first)

    def borders(self) -> NDArray[np.int64]:
        """Return the tokens that begin where the one before them has ended, int64."""
        return np.flatnonzero(self.starts[1:] >= self.stops[:-1]) + 1

    def meeting(self, following: "_Window") -> tuple[int, int] | None:
        """Return the token of this window and the one of the following at which the latter takes over."""
        shift = max(0, len(self.text) - _OVERLAP_CHARACTERS)
        here, there = self.borders(), following.borders()
        places, mine, its = np.intersect1d(self.starts[here] - shift, following.starts[there], return_indices=True)
        for near in np.argsort(np.abs(places - _OVERLAP_CHARACTERS // 2)):
            one, other = int(here[mine[near]]), int(there[its[near]])
            around = self.around(one)
            if len(around) == 2 * _AGREEING_TOKENS and np.array_equal(around, following.around(other)):
                return one, other
        return None

    def around(self, place: int) -> NDArray[np.int32]:
        """Return the tokens before and after a border; fewer near an end of the window."""
        return self.tokens[max(0, place - _AGREEING_TOKENS) : place + _AGREEING_TOKENS]


def tokens_of_text(lines: Iterable[str], tokenizer: TextTokenizer) -> Iterator[NDArray[np.int32]]:
    """Tokenize the lines of one text as a whole.

    Args:
        lines: with their line ends.
        tokenizer: one that does not tell the characters of its tokens takes the whole text at once.

    Yields:
        The tokens in parts, int32.
    """
    if tokenizer.backend is None:
        yield np.array(tokenizer.ids(["".join(lines)])[0], np.int32)
        return
    window: _Window | None = None
    for following, num_shared in _windows(lines, tokenizer):
        if window is None:
            window = following
            continue
        meeting = window.meeting(following)
        if meeting is None:
            text = window.text + following.text[num_shared:]
            window = _Window.of(text, tokenizer.locate([text])[0], window.first)
            continue
        yield window.tokens[window.first : meeting[0]]
        window = replace(following, first=meeting[1])
    if window is not None:
        yield window.tokens[window.first :]


def _windows(lines: Iterable[str], tokenizer: TextTokenizer) -> Iterator[tuple[_Window, int]]:
    """Yield windows, and how many of their characters the one before has too."""
    pieces, before = _pieces(lines), ""
    while held := list(islice(pieces, _NUM_AT_ONCE)):
        shared = [before, *(piece[-_OVERLAP_CHARACTERS:] for piece in held[:-1])]
        texts = [first + rest for first, rest in zip(shared, held, strict=True)]
        for text, first, located in zip(texts, shared, tokenizer.locate(texts), strict=True):
            yield _Window.of(text, located), len(first)
        before = held[-1][-_OVERLAP_CHARACTERS:]


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """Join lines into pieces of some thousand characters."""
    held: list[str] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _PIECE_CHARACTERS:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)
