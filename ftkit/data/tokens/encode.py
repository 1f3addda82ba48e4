"""Texts to token arrays, a few thousand at a time: Python lists of tokens are eight times their int32 arrays.

Truncation is on the right, nothing is padded, and every sequence has a token at least.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftkit.data.arrays import TokenSplit
from ftkit.data.chunks import chunks
from ftkit.data.spill import Growing
from ftkit.data.tokens.running import tokens_of_text
from ftkit.data.tokens.targets import Marked, Piece, mark_targets
from ftkit.data.tokens.tokenizer import Ids, TextTokenizer
from ftkit.errors import DataError

_TARGETS_AT_ONCE = 2**20


@dataclass
class Losses:
    """The cost of making sequences of texts, counted text by text.

    Attributes:
        num_truncated: sequences that were cut at the maximal length.
        num_dropped: sequences that were left out because they have no target within the maximal length.
        num_unanswered: sequences that were left out because they have no target at all.
        num_shortened: sequences that were cut and kept a part of their targets alone.
        num_lost_targets: targets that were cut off, of sequences that were left out too.
        num_across: tokens with characters of an answer and of what is before it.
        num_spelled: texts that spell out a special token.
        num_unpredicted: sequences whose first token belongs to an answer, and has no loss: nothing stands before it.
        num_open: texts that no token closes, since the tokenizer has none.
        num_alone: tokens of running text that are left out, since they would be a block of their own.
        num_in_windows: texts that are longer than the maximal length, and read in windows.
    """

    num_truncated: int = 0
    num_dropped: int = 0
    num_unanswered: int = 0
    num_shortened: int = 0
    num_lost_targets: int = 0
    num_across: int = 0
    num_spelled: int = 0
    num_unpredicted: int = 0
    num_open: int = 0
    num_alone: int = 0
    num_in_windows: int = 0

    def keep(self, targets: NDArray[np.bool_], max_length: int, marked: Marked) -> bool:
        """Count a text, and tell whether a target is left."""
        num_targets, num_kept = int(targets.sum()), int(targets[:max_length].sum())
        self.num_truncated += len(targets) > max_length and num_kept > 0
        self.num_unanswered += num_targets == 0
        self.num_dropped += num_kept == 0 < num_targets
        self.num_shortened += 0 < num_kept < num_targets
        self.num_lost_targets += num_targets - num_kept
        self.num_across += marked.num_across
        return num_kept > 0


@dataclass(frozen=True)
class Encoded:
    """A split of tokens, and what its making cost.

    Attributes:
        split: the arrays.
        whole_lengths: the tokens of each text before it was cut, of those without a target too.
        losses: what was cut off, left out or read in another way.
        is_single: each text stands alone and has a label, so that a long one could be read in windows.
    """

    split: TokenSplit
    whole_lengths: NDArray[np.integer[Any]]
    losses: Losses
    is_single: bool = False


@dataclass
class _Ragged:
    """Sequences on their way into flat arrays."""

    extra: Growing
    tokens: Growing = field(default_factory=lambda: Growing(np.int32))
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    whole_lengths: "array[int]" = field(default_factory=lambda: array("i"))

    def add(self, tokens: Ids, extra: Any = ()) -> None:
        self.tokens.add(tokens)
        self.lengths.append(len(tokens))
        self.extra.add(extra)

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        return self.tokens.array(), _offsets(self.lengths)


def encode_texts(
    first: Iterable[str],
    tokenizer: TextTokenizer,
    max_length: int,
    second: Iterable[str] | None = None,
    labels: NDArray[np.int64] | None = None,
    *,
    in_windows: bool = False,
) -> Encoded:
    """Tokenize texts, or pairs of texts, for classification.

    Args:
        first: N texts.
        tokenizer: its special tokens are added.
        max_length: tokens after which a text is cut; of a pair, the longer text gives first.
        second: N second texts, or None.
        labels: int64 [N]; zeros when not given.
        in_windows: single texts that are longer are not cut, but read in windows.

    Returns:
        Sequences of 1 to `max_length` tokens, one for each text or window.

    Raises:
        DataError: windows cannot be made.
    """
    if in_windows:
        _check_room(tokenizer, max_length)
    counts = array("i")
    ragged, num_spelled, filler = _Ragged(Growing(np.int8)), 0, tokenizer.filler()
    has_segments = second is not None and "token_type_ids" in tokenizer.original.model_input_names
    pairs = zip(first, second, strict=True) if second is not None else ((text, "") for text in first)
    for chunk in chunks(pairs, lambda pair: len(pair[0]) + len(pair[1])):
        firsts, seconds = [text for text, _ in chunk], [text for _, text in chunk]
        num_spelled += tokenizer.special.count(map("\n".join, chunk))
        made = tokenizer.windowed(firsts, max_length) if in_windows else None
        for text in made or tokenizer.classified(firsts, seconds if second is not None else None, max_length):
            is_empty = not len(text.tokens)
            segments = ([0] if is_empty else text.segments) if has_segments else ()
            ragged.add([filler] if is_empty else text.tokens, segments)
            for window in text.more:
                ragged.add(window)
            counts.append(1 + len(text.more))
            ragged.whole_lengths.append(max(1, text.num_tokens))
    whole_lengths = np.asarray(ragged.whole_lengths, np.int32)
    tokens, offsets = ragged.arrays()
    kinds = ragged.extra.array() if len(ragged.extra) else None
    labels = np.zeros(len(counts), dtype=np.int64) if labels is None else labels
    windows = _offsets(counts) if max(counts, default=1) > 1 else None
    split = TokenSplit(tokens, offsets, labels, kinds, windows=windows)
    num_long = int((whole_lengths > max_length).sum())
    kept, lost = (num_long, 0) if in_windows else (0, num_long)
    losses = Losses(lost, num_spelled=num_spelled, num_in_windows=kept)
    return Encoded(split, whole_lengths, losses, is_single=second is None)


def _offsets(lengths: "array[int]") -> NDArray[np.int64]:
    """Return where each of some parts begins, and behind them where the last one ends, int64 [parts + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _check_room(tokenizer: TextTokenizer, max_length: int) -> None:
    if tokenizer.backend is None:
        raise DataError(
            "data.long_texts=windows needs the fast form of a tokenizer (tokenizer.json), which this model does not "
            "have; leave it out, or save one with transformers"
        )
    if tokenizer.room(max_length) < 1:
        raise DataError(
            f"data.max_length={max_length} leaves no room for text beside special tokens; give a greater --max-length"
        )


def encode_documents(texts: Iterable[str], tokenizer: TextTokenizer, max_length: int, *, is_lines: bool) -> Encoded:
    """Join texts and cut them into blocks for causal language modelling; every token but a block's first is a target.

    Args:
        texts: documents, each begun as the tokenizer begins texts and followed by the end token; or the lines of one
            text, line ends included, which is begun once.
        tokenizer: of the model.
        max_length: tokens of a block; the last block may be shorter.
        is_lines: the texts are lines of one running text.

    Returns:
        Blocks of 2 to `max_length` tokens.

    Raises:
        DataError: there are fewer than two tokens.
    """
    losses, joined = Losses(), Growing(np.int32)
    joined.add(tokenizer.begin if is_lines else ())
    if is_lines:
        for part in tokens_of_text(_counted(texts, tokenizer, losses), tokenizer):
            joined.add(part)
    else:
        for chunk in chunks(_counted(texts, tokenizer, losses), len):
            for ids in tokenizer.ids(chunk):
                joined.add([*tokenizer.begin, *ids, *tokenizer.end])
            losses.num_open += len(chunk) if not tokenizer.end else 0
    tokens = joined.array()
    if len(tokens) % max_length == 1:
        tokens, losses.num_alone = tokens[:-1], 1  # a block of one token has no target
    if len(tokens) < 2:
        raise DataError("the text has fewer than two tokens, so nothing predicts anything; give more text")
    offsets = np.append(np.arange(0, len(tokens), max_length, dtype=np.int64), len(tokens))
    return Encoded(TokenSplit(tokens, offsets, _block_targets(len(tokens), max_length)), np.diff(offsets), losses)


def _block_targets(num_tokens: int, max_length: int) -> NDArray[np.bool_]:
    """Return True for every token of some blocks but the first of each."""
    targets, num_at_once = Growing(np.bool_), max_length * (1 + _TARGETS_AT_ONCE // max_length)
    for start in range(0, num_tokens, num_at_once):
        part = np.ones(min(num_at_once, num_tokens - start), np.bool_)
        part[::max_length] = False
        targets.add(part)
    return targets.array()


def take_blocks(encoded: Encoded, chosen: NDArray[np.int64]) -> Encoded:
    """Return the blocks of running text at `chosen`, int64 [blocks to keep], ascending."""
    split = encoded.split
    keep = np.isin(np.arange(len(split)), chosen)
    tokens = np.repeat(keep, split.lengths)
    offsets = np.concatenate(([0], np.cumsum(split.lengths[keep])))
    kept = TokenSplit(split.tokens[tokens], offsets, split.labels[tokens])
    return replace(encoded, split=kept, whole_lengths=encoded.whole_lengths[keep])


def encode_pieces(
    rows: Iterable[Sequence[Piece]], tokenizer: TextTokenizer, max_length: int, *, is_whole: bool
) -> Encoded:
    """Tokenize texts of which some pieces carry loss: prompt and completion, or the turns of a chat.

    Args:
        rows: the pieces of each text.
        tokenizer: of the model.
        max_length: tokens after which a sequence is cut.
        is_whole: the texts have their own first and last tokens, as chat templates write them; else a text is begun as
            the tokenizer begins texts, and its end token carries loss.

    Returns:
        The sequences that have a target within `max_length`.

    Raises:
        DataError: no sequence has one, or none has a target at all.
    """
    begin, end = ((), ()) if is_whole else (tokenizer.begin, tokenizer.end)
    ragged, losses = _Ragged(Growing(np.bool_)), Losses()
    for chunk in chunks(rows, lambda pieces: sum(len(text) for text, _ in pieces)):
        if not is_whole:
            losses.num_spelled += tokenizer.special.count("".join(text for text, _ in pieces) for pieces in chunk)
            losses.num_open += len(chunk) if not end else 0
        for marked in mark_targets(chunk, tokenizer, is_rendered=is_whole):
            tokens = np.concatenate((begin, marked.tokens, end)).astype(np.int32)
            targets = np.concatenate((np.zeros(len(begin)), marked.targets, np.ones(len(end)))).astype(np.bool_)
            losses.num_unpredicted += int(targets[:1].sum())
            targets[:1] = False  # nothing predicts a first token
            ragged.whole_lengths.append(len(tokens))
            if losses.keep(targets, max_length, marked):
                ragged.add(tokens[:max_length], targets[:max_length])
    if losses.num_unanswered and losses.num_unanswered == len(ragged.whole_lengths):
        raise DataError(
            "no sequence has a target: no answer carries loss, since all are empty, have weight 0 or lie outside what "
            "the chat template marks; give answers that train, or give --set data.loss_on=everything"
        )
    if not ragged.lengths:
        raise DataError(
            f"no sequence has a target within data.max_length={max_length} tokens: the prompts fill it; give "
            "a greater --max-length, shorten the prompts, or give completions that are not empty"
        )
    split = TokenSplit(*ragged.arrays(), ragged.extra.array())
    return Encoded(split, np.asarray(ragged.whole_lengths, np.int32), losses)


def _counted(texts: Iterable[str], tokenizer: TextTokenizer, losses: Losses) -> Iterator[str]:
    for text in texts:
        losses.num_spelled += tokenizer.special.count([text])
        yield text
