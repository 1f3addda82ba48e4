"""Texts to token arrays, a few thousand at a time: Python lists of tokens are eight times their int32 arrays.

Truncation is on the right, nothing is padded, and every sequence has a token at least.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ftkit.data.arrays import TokenSplit
from ftkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK_ROWS = 2_000
_CHUNK_PIECES = 16
_PIECE_CHARACTERS = 2**16

T = TypeVar("T")
Message = dict[str, Any]
Piece = tuple[str, bool]
"""A part of a sequence's text, and whether its tokens carry loss."""


@dataclass(frozen=True)
class Encoded:
    """A split of tokens, and what its making cost.

    Attributes:
        split: the arrays.
        num_truncated: sequences that were cut at the maximal length.
        num_dropped: sequences that were left out because they have no target.
    """

    split: TokenSplit
    num_truncated: int = 0
    num_dropped: int = 0


@dataclass
class _Ragged:
    """Sequences on their way into flat arrays."""

    tokens: list[NDArray[np.int32]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    extra: list[NDArray[Any]] = field(default_factory=list)

    def extend(self, sequences: Sequence[Sequence[int]]) -> None:
        self.tokens.append(_flat(sequences, np.int32))
        self.lengths.extend(map(len, sequences))

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        tokens = np.concatenate([np.empty(0, np.int32), *self.tokens])
        return tokens, np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64))).astype(np.int64)


def encode_texts(
    first: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    second: Iterable[str] | None = None,
    labels: NDArray[np.int64] | None = None,
) -> Encoded:
    """Tokenise texts, or pairs of texts, for classification.

    Args:
        first: N texts.
        tokenizer: its special tokens are added.
        max_length: tokens after which a text is cut; of a pair, the longer text gives first.
        second: N second texts, or None.
        labels: int64 [N]; zeros when not given.

    Returns:
        N sequences of 1 to `max_length` tokens.
    """
    ragged, truncated, filler = _Ragged(), 0, _filler(tokenizer)
    has_segments = second is not None and "token_type_ids" in tokenizer.model_input_names
    pairs = zip(first, second, strict=True) if second is not None else ((text, None) for text in first)
    with _cut_on_the_right(tokenizer):
        for chunk in _chunks(pairs, _CHUNK_ROWS):
            batch = tokenizer(
                [text for text, _ in chunk],
                [pair for _, pair in chunk] if second is not None else None,
                truncation="longest_first",
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=has_segments,
            )
            ragged.extend([ids or [filler] for ids in batch["input_ids"]])
            truncated += _num_truncated(batch, max_length)
            if has_segments:
                ragged.extra.append(_flat([ids or [0] for ids in batch["token_type_ids"]], np.int8))
    tokens, offsets = ragged.arrays()
    segments = np.concatenate(ragged.extra) if ragged.extra else None
    labels = np.zeros(len(offsets) - 1, dtype=np.int64) if labels is None else labels
    return Encoded(TokenSplit(tokens, offsets, labels, segments), truncated)


def encode_documents(
    texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", max_length: int, is_lines: bool
) -> Encoded:
    """Join texts and cut them into blocks for causal language modelling; every token but a block's first is a target.

    Args:
        texts: documents, each followed by the end token; or the lines of one text, line ends included.
        tokenizer: no other special tokens are added.
        max_length: tokens of a block; the last block may be shorter.
        is_lines: the texts are lines of one running text.

    Returns:
        Blocks of 2 to `max_length` tokens.

    Raises:
        DataError: there are fewer than two tokens.
    """
    end = [] if is_lines else end_tokens(tokenizer)
    parts = [np.empty(0, np.int32)]
    for chunk in _chunks(_joined(texts), _CHUNK_PIECES) if is_lines else _chunks(texts, _CHUNK_ROWS):
        batch = tokenizer(chunk, add_special_tokens=False, return_attention_mask=False, verbose=False)
        parts.append(_flat([[*ids, *end] for ids in batch["input_ids"]], np.int32))
    tokens = np.concatenate(parts)
    if len(tokens) % max_length == 1:
        tokens = tokens[:-1]  # a block of one token has no target
    if len(tokens) < 2:
        raise DataError("the text has fewer than two tokens, so nothing predicts anything; give more text")
    offsets = np.append(np.arange(0, len(tokens), max_length, dtype=np.int64), len(tokens))
    targets = np.ones(len(tokens), dtype=np.bool_)
    targets[offsets[:-1]] = False
    return Encoded(TokenSplit(tokens, offsets, targets))


def take_blocks(encoded: Encoded, chosen: NDArray[np.int64]) -> Encoded:
    """Return the blocks of running text at `chosen`, int64 [blocks to keep], ascending."""
    split = encoded.split
    keep = np.isin(np.arange(len(split)), chosen)
    tokens = np.repeat(keep, split.lengths)
    offsets = np.concatenate(([0], np.cumsum(split.lengths[keep])))
    return Encoded(TokenSplit(split.tokens[tokens], offsets, split.labels[tokens]))


def encode_pieces(
    rows: Iterable[Sequence[Piece]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    begin: Sequence[int] = (),
    end: Sequence[int] = (),
) -> Encoded:
    """Tokenise sequences of which some pieces carry loss: prompt and completion, or the turns of a chat.

    Pieces are tokenised apart, so that what comes before a target is what will come before it when the model generates.

    Args:
        rows: the pieces of each sequence.
        tokenizer: adds no special tokens.
        max_length: tokens after which a sequence is cut.
        begin: tokens put before each sequence, without loss.
        end: tokens put after each sequence, with loss.

    Returns:
        The sequences that have a target within `max_length`.

    Raises:
        DataError: no sequence has one.
    """
    ragged, truncated, dropped = _Ragged(), 0, 0
    for chunk in _chunks(rows, _CHUNK_ROWS):
        texts = [text for pieces in chunk for text, _ in pieces]
        ids = iter(tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])
        kept: list[tuple[list[int], list[bool]]] = []
        for pieces in chunk:
            parts = [(begin, False), *((next(ids), is_target) for _, is_target in pieces), (end, True)]
            tokens = [token for part, _ in parts for token in part][:max_length]
            targets = [is_target for part, is_target in parts for _ in part][:max_length]
            targets[:1] = [False]
            truncated += sum(len(part) for part, _ in parts) > max_length
            if any(targets):
                kept.append((tokens, targets))
        dropped += len(chunk) - len(kept)
        ragged.extend([tokens for tokens, _ in kept])
        ragged.extra.append(_flat([targets for _, targets in kept], np.bool_))
    if not ragged.lengths:
        raise DataError(
            f"no sequence has a target within data.max_length={max_length} tokens: the prompts fill it; raise "
            "data.max_length, shorten the prompts, or give completions that are not empty"
        )
    return Encoded(TokenSplit(*ragged.arrays(), np.concatenate(ragged.extra)), truncated, dropped)


def begin_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the token that begins a text, as a list, where the tokenizer puts one there by itself."""
    whole = tokenizer("", return_attention_mask=False)["input_ids"]
    begins = bool(whole) and tokenizer.bos_token_id is not None and whole[0] == tokenizer.bos_token_id
    return list(whole[:1]) if begins else []


def end_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the token that ends a text, as a list: the end of sequence, else the separator, else none."""
    known = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return [token for token in known if isinstance(token, int)][:1]


def chat_pieces(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", row: int) -> list[Piece]:
    """Return the pieces of a conversation: the assistant's turns carry loss, except one that nobody asked for.

    What follows the last of these turns is left out, since nothing learns from it.

    Args:
        messages: objects of `role` and `content`.
        tokenizer: its chat template writes the turns.
        row: the row's number, for errors.

    Returns:
        Pieces that alternate between context and target.

    Raises:
        DataError: there is no template, or it refuses the messages, or it rewrites earlier turns when later ones come.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the model's tokenizer has no chat template, so it is not known how it writes a conversation; choose a "
            "model that was trained to chat, or give prompt and completion columns"
        )
    pieces: list[Piece] = []
    done = ""
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or place == 0:
            continue
        before = _render(messages[:place], tokenizer, row, True)
        after = _render(messages[: place + 1], tokenizer, row, False)
        if not (before.startswith(done) and after.startswith(before)):
            raise DataError(
                f"row {row}: the chat template of this tokenizer rewrites earlier turns as later ones come, so "
                "the assistant's part cannot be told apart; give conversations of one answer, or prompt and completion"
            )
        pieces += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    return pieces


def _render(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", row: int, is_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=is_prompt))
    except (TemplateError, TypeError, KeyError) as error:
        raise DataError(
            f"row {row}: the tokenizer's chat template refuses the messages ({error}); correct them"
        ) from None


def _filler(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the token that stands for an empty text."""
    known = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id)
    return next((int(token) for token in known if isinstance(token, int)), 0)


def _num_truncated(batch: Any, max_length: int) -> int:
    encodings = getattr(batch, "encodings", None)
    if encodings:
        return sum(bool(encoding.overflowing) for encoding in encodings)
    return sum(len(ids) == max_length for ids in batch["input_ids"])  # at most: a slow tokenizer does not tell


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Join lines into pieces of some 64 thousand characters: a whole book at once would be tokenised at once."""
    held, size = [], 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _PIECE_CHARACTERS:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _flat(sequences: Iterable[Sequence[int]], dtype: type[Any]) -> NDArray[Any]:
    return np.fromiter(itertools.chain.from_iterable(sequences), dtype=dtype)


@contextmanager
def _cut_on_the_right(tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    side = tokenizer.truncation_side
    tokenizer.truncation_side = "right"
    try:
        yield
    finally:
        tokenizer.truncation_side = side
