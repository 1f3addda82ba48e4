"""The tokens of a text that carry loss: the text is tokenized as a whole, and characters say where its answers lie.

    pieces      "Q: 2+2? A:" | " 4"             the answer is the characters 10 to 12
    tokens       Q : ▁2 + 2 ? ▁A : ▁4           of the whole; ▁4 has the characters 10 to 12, and carries loss

**A token with at least one character of an answer carries loss.** So where a token lies across the border, such as `▁4`
of "A: " and "4", all of the answer is learned, and the space with it; such tokens are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.errors import DataError

Piece = tuple[str, bool]
"""A part of a text, and whether it is an answer."""


class Marked(NamedTuple):
    """The tokens of a text, and which of them carry loss.

    Attributes:
        tokens: int32 [T].
        targets: bool [T].
        num_across: tokens with characters of an answer and of what is before it.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.bool_]
    num_across: int


def mark_targets(rows: Sequence[Sequence[Piece]], tokenizer: TextTokenizer, *, is_rendered: bool) -> list[Marked]:
    """Tokenize texts as wholes and find the tokens of their answers.

    Args:
        rows: the pieces of each text.
        tokenizer: a fast one tells the characters of each token. One without them is asked for the tokens of each
            beginning; where these do not begin the tokens of the whole, the text is refused.
        is_rendered: special tokens in the texts are the chat template's (see `SpecialTokens.as_tokenized`).

    Returns:
        The tokens of each text.

    Raises:
        DataError: the tokenizer does not tell the characters of its tokens, and a border lies inside a token.
    """
    texts = ["".join(text for text, _ in pieces) for pieces in rows]
    if tokenizer.backend is None:
        beginnings = _Beginnings(tokenizer, is_rendered=is_rendered)
        return [beginnings.mark(pieces, text) for pieces, text in zip(rows, texts, strict=True)]
    located = zip(rows, tokenizer.locate(texts), strict=True)
    return [_mark_by_characters(_answers(pieces), tokens, spans) for pieces, (tokens, spans) in located]


def _answers(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """Return the first character and the one after the last of each answer."""
    borders = [0, *accumulate(len(text) for text, _ in pieces)]
    return [span for span, (text, is_answer) in zip(pairwise(borders), pieces, strict=True) if is_answer and text]


def _mark_by_characters(
    answers: Sequence[tuple[int, int]], tokens: NDArray[np.int32], spans: NDArray[np.int64]
) -> Marked:
    """Mark the tokens whose characters, int64 [T, 2] and ascending, overlap an answer."""
    starts, stops = spans[:, 0], spans[:, 1]
    targets = np.zeros(len(tokens), np.bool_)
    num_across = 0
    for start, stop in answers:
        first, last = np.searchsorted(stops, start, "right"), np.searchsorted(starts, stop, "left")
        targets[first:last] = True
        num_across += int((starts[first:last] < start).sum())
    return Marked(tokens, targets, num_across)


@dataclass(frozen=True)
class _Beginnings:
    """Mark the answers in texts whose tokenizer does not give the characters of its tokens."""

    tokenizer: TextTokenizer
    is_rendered: bool

    def mark(self, pieces: Sequence[Piece], text: str) -> Marked:
        whole = self._ids(text)
        targets = np.zeros(len(whole), np.bool_)
        for start, stop in _answers(pieces):
            targets[self._num_tokens(text, start, whole) : self._num_tokens(text, stop, whole)] = True
        return Marked(np.array(whole, np.int32), targets, 0)

    def _num_tokens(self, text: str, border: int, whole: list[int]) -> int:
        """Return how many tokens of a whole text lie before a border."""
        before = self._ids(text[:border]) if border < len(text) else whole
        if whole[: len(before)] != before:
            raise DataError(
                "this tokenizer has no fast form (tokenizer.json), so it does not tell which characters a token has, "
                f"and the border at {text[max(0, border - 20) : border]!r} | {text[border : border + 20]!r} is in one; "
                "choose a model with a fast tokenizer, or give --set data.loss_on=everything"
            )
        return len(before)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.ids([text], is_rendered=self.is_rendered)[0]
