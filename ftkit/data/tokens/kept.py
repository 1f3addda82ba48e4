"""Texts that were tokenized before are not tokenized again: tokens are kept chunk by chunk, under digests of the texts.

A chunk is what `chunks` makes of the rows of a split. So rows that are added at the end leave most chunks as they were,
and a run that is killed while it tokenizes leaves those that are done.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FORMAT = 1
"""Of what is kept; raised when the arrays change."""
_FEWEST_CHARACTERS = 100_000
"""Of a chunk that is kept; fewer take less than a tenth of a second."""

Arrays = Mapping[str, NDArray[Any]]


class TokenStore(Protocol):
    """Keeps arrays under keys."""

    def get(self, key: str) -> Arrays | None:
        """Return the arrays of a key; None where there are none."""

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep the arrays of a key, or not."""


@dataclass(frozen=True)
class KeptTokens:
    """The tokens that one tokenizer has made.

    Attributes:
        store: keeps them.
        backend: the tokenizer.
        mark: letters of chance in the names of its special tokens, and in texts, which decide no token.
    """

    store: TokenStore
    backend: "Tokenizer"
    mark: str

    def arrays(self, form: tuple[object, ...], texts: Sequence[str], make: Callable[[], Arrays]) -> Arrays:
        """Return what a tokenizer makes of texts.

        Args:
            form: the arrays that are made, and what decides them beside texts and tokenizer.
            texts: a chunk.
            make: tokenizes them.
        """
        if sum(map(len, texts)) < _FEWEST_CHARACTERS:
            return make()
        digest = hashlib.sha256(f"{self._tokenizer} {form}".encode())
        for text in texts:
            # Doubled, so that a text which holds the sign itself is not taken for one that holds the mark.
            content = text.replace("\0", "\0\0").replace(self.mark, "\0\1").encode(errors="surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)
        key = digest.hexdigest()[:32]
        known = self.store.get(key)
        if known is not None:
            return known
        made = make()
        self.store.put(key, made)
        return made

    @cached_property
    def _tokenizer(self) -> str:
        content = self.backend.to_str().replace(self.mark, "\0")
        return f"{_FORMAT} {metadata.version('tokenizers')} {hashlib.sha256(content.encode()).hexdigest()}"
