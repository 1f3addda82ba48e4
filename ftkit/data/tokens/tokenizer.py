"""One tokenizer as data needs it: whole texts in, their tokens and the characters of each out."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ftkit.data.tokens.kept import Arrays, KeptTokens, TokenStore
from ftkit.data.tokens.special import SpecialTokens, special_names
from ftkit.data.tokens.windows import window_length

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_PROBE = 'Probe: a  b\n1+2=3, "é" (ok).'

Ids = Sequence[int] | NDArray[np.integer[Any]]


class Classified(NamedTuple):
    """The tokens of a text, or of a pair, for classification.

    Attributes:
        tokens: special tokens included, cut.
        segments: 0 for the first text and 1 for the second, as the tokenizer gives them.
        num_tokens: tokens before the cut.
        more: of a text in windows, the tokens of those behind the first.
    """

    tokens: Ids
    segments: Ids
    num_tokens: int
    more: Sequence[Ids] = ()


class Located(NamedTuple):
    """The tokens of a text, and where they are in it.

    Attributes:
        tokens: int32 [T].
        spans: int64 [T, 2], the first character of each token and the one after its last.
    """

    tokens: NDArray[np.int32]
    spans: NDArray[np.int64]


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer for data.

    Attributes:
        original: the model's own.
        backend: a copy of its fast half (see `special`), or None where there is no such half.
        special: its special tokens.
        begin: the tokens that the tokenizer puts before a text by itself.
        end: the token that closes a text, as a list: the end of sequence, else the separator, else none.
        kept: the tokens of texts that were tokenized before; None: every text is tokenized.
    """

    original: "PreTrainedTokenizerBase"
    backend: "Tokenizer | None"
    special: SpecialTokens
    begin: tuple[int, ...]
    end: tuple[int, ...]
    kept: KeptTokens | None = None

    @classmethod
    def of(
        cls, tokenizer: "PreTrainedTokenizerBase", *, are_characters: bool = True, store: TokenStore | None = None
    ) -> "TextTokenizer":
        """Return a model's tokenizer for data.

        Args:
            tokenizer: of transformers.
            are_characters: special tokens that a text spells out are its characters.
            store: keeps the tokens that a fast tokenizer makes; None: nothing is kept.
        """
        special = SpecialTokens(special_names(tokenizer), are_characters)
        backend = _backend(tokenizer, special)
        special = replace(special, can_be_renamed=backend is not None)
        known = (tokenizer.eos_token_id, tokenizer.sep_token_id)
        end = tuple(token for token in known if isinstance(token, int))[:1]
        kept = None if store is None or backend is None else KeptTokens(store, backend, special.template_mark)
        return cls(tokenizer, backend, special, _begin_tokens(tokenizer), end, kept)

    def locate(self, texts: Sequence[str]) -> list[Located]:
        """Tokenize whole texts with a fast tokenizer, without tokens that are not in them.

        Args:
            texts: N texts.

        Returns:
            The tokens of each text, with their characters.
        """
        backend = self.backend
        assert backend is not None

        def make() -> Arrays:
            encodings = backend.encode_batch(list(texts), add_special_tokens=False)
            spans = (place for encoding in encodings for span in encoding.offsets for place in span)
            arrays = _flat([encoding.ids for encoding in encodings])
            return arrays | {"spans": np.fromiter(spans, np.int64).reshape(-1, 2)}

        arrays = self._arrays(("located",), texts, make)
        return [Located(arrays["tokens"][part], arrays["spans"][part]) for part in _parts(arrays)]

    def ids(self, texts: Sequence[str], *, is_rendered: bool = False) -> list[list[int]]:
        """Tokenize whole texts, without tokens that are not in them.

        Args:
            texts: N texts.
            is_rendered: special tokens in them are the chat template's (see `SpecialTokens.as_tokenized`).

        Returns:
            N lists of token numbers.
        """
        if self.backend is not None:
            quick = partial(self.backend.encode_batch_fast, list(texts), add_special_tokens=False)
            arrays = self._arrays(("ids",), texts, lambda: _flat([encoding.ids for encoding in quick()]))
            return [arrays["tokens"][part].tolist() for part in _parts(arrays)]
        if is_rendered:
            return [self.original(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        return [self._slow(text, add_special_tokens=False)["input_ids"] for text in texts]

    def room(self, max_length: int) -> int:
        """Return the tokens of a single text that a sequence of `max_length` has room for, beside the special ones."""
        return max_length - (0 if self.backend is None else self.backend.num_special_tokens_to_add(False))

    def windowed(self, texts: Sequence[str], max_length: int) -> Iterator[Classified]:
        """Tokenize texts with special tokens, those that are too long in windows; see `windows`.

        Args:
            texts: N texts.
            max_length: tokens of a window at most, more than the special ones.

        Yields:
            The tokens of each text.
        """
        assert self.backend is not None
        room = self.room(max_length)
        num_added = max_length - room
        try:
            for whole in self.backend.encode_batch_fast(list(texts), add_special_tokens=False):
                length = room if len(whole) <= room else window_length(len(whole), room)
                self.backend.enable_truncation(length + num_added, strategy="longest_first", direction="right")
                done = self.backend.post_process(whole, None, add_special_tokens=True)
                more = [one.ids for one in done.overflowing]
                yield Classified(done.ids, done.type_ids, len(whole) + num_added, more)
        finally:
            self.backend.no_truncation()

    def classified(self, first: Sequence[str], second: Sequence[str] | None, max_length: int) -> Iterator[Classified]:
        """Tokenize texts, or pairs of texts, with the special tokens that the model's tokenizer adds.

        Args:
            first: N texts.
            second: N second texts, or None.
            max_length: tokens after which a text is cut on the right; of a pair, the longer text gives first.

        Yields:
            The tokens of each text.
        """
        if self.backend is None:
            for text, pair in zip(first, second or itertools.repeat(None), strict=second is not None):
                yield self._slowly_classified(text, pair, max_length)
            return
        form = ("classified", max_length, second is not None)
        arrays = self._arrays(form, [*first, *(second or ())], lambda: self._quickly(first, second, max_length))
        for part, number in zip(_parts(arrays), arrays["num_tokens"].tolist(), strict=True):
            yield Classified(arrays["tokens"][part], arrays["segments"][part], number)

    def _arrays(self, form: tuple[object, ...], texts: Sequence[str], make: Callable[[], Arrays]) -> Arrays:
        return make() if self.kept is None else self.kept.arrays(form, texts, make)

    def _quickly(self, first: Sequence[str], second: Sequence[str] | None, max_length: int) -> Arrays:
        """Tokenize texts for classification with a fast tokenizer."""
        assert self.backend is not None
        firsts = self.backend.encode_batch_fast(list(first), add_special_tokens=False)
        seconds = self.backend.encode_batch_fast(list(second), add_special_tokens=False) if second is not None else None
        found: list[Classified] = []
        num_added = self.backend.num_special_tokens_to_add(second is not None)
        self.backend.enable_truncation(max_length, strategy="longest_first", direction="right")
        try:
            for place, whole in enumerate(firsts):
                other = None if seconds is None else seconds[place]
                num_tokens = len(whole) + (0 if other is None else len(other)) + num_added
                done = self.backend.post_process(whole, other, add_special_tokens=True)
                found.append(Classified(done.ids, done.type_ids, num_tokens))
        finally:
            self.backend.no_truncation()
        segments = [segment for text in found for segment in text.segments]
        return _flat([text.tokens for text in found]) | {
            "segments": np.array(segments, np.int8),
            "num_tokens": np.array([text.num_tokens for text in found], np.int64),
        }

    def filler(self) -> int:
        """Return the token that takes the place of an empty text."""
        names = ("eos_token_id", "bos_token_id", "sep_token_id", "unk_token_id")
        known = (getattr(self.original, name) for name in names)
        return next((int(token) for token in known if isinstance(token, int)), 0)

    def unknown(self) -> int | None:
        """Return the token that stands for what is not known; None where it has another meaning too, as GPT-2's has."""
        others = ("eos_token_id", "bos_token_id", "sep_token_id", "cls_token_id")
        token = self.original.unk_token_id
        return token if isinstance(token, int) and all(getattr(self.original, one) != token for one in others) else None

    def _slow(self, text: str, pair: str | None = None, **arguments: Any) -> Any:
        are_characters = self.special.are_characters and self.special.count([text, pair or ""]) > 0
        return self.original(text, pair, split_special_tokens=are_characters, verbose=False, **arguments)

    def _slowly_classified(self, text: str, pair: str | None, max_length: int) -> Classified:
        num_tokens = len(self._slow(text, pair)["input_ids"])
        side, self.original.truncation_side = self.original.truncation_side, "right"
        try:
            batch = self._slow(text, pair, truncation="longest_first", max_length=max_length)
        finally:
            self.original.truncation_side = side
        tokens = batch["input_ids"]
        return Classified(tokens, batch.get("token_type_ids") or [0] * len(tokens), num_tokens)


def _flat(texts: Sequence[Ids]) -> dict[str, NDArray[Any]]:
    """Return the tokens of texts end to end, int32, and their lengths, int64 [N]."""
    lengths = np.array([len(tokens) for tokens in texts], np.int64)
    tokens = np.fromiter((token for tokens in texts for token in tokens), np.int32, int(lengths.sum()))
    return {"tokens": tokens, "lengths": lengths}


def _parts(arrays: Arrays) -> list[slice]:
    """Return the place of each text among the tokens of all."""
    ends = np.cumsum(arrays["lengths"]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _backend(tokenizer: Any, special: SpecialTokens) -> "Tokenizer | None":
    """Return the copy of a fast tokenizer; None for one in Python, or one whose parts in Python cannot be copied."""
    own = getattr(tokenizer, "backend_tokenizer", None)
    if own is None:
        return None
    try:
        copy = special.renamed(own)
    except Exception:  # the library's errors have no class of their own
        return None
    expected = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    return copy if copy.encode(_PROBE, add_special_tokens=False).ids == expected else None


def _begin_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before a text by itself."""
    text = "a"
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    starts = (place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return tuple(whole[: next(starts, 0)]) if bare else ()
