"""The baseline that knows no language: words and pairs of words, weighted by TF-IDF."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress, pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from ftkit.models.logistic import Problem

_WORD = re.compile(r"\w+")
_FEWEST_TEXTS = 2
"""A term of a single text says nothing of others."""
_MOST_NUMBERS = 3 * 10**7
"""In the matrix, which is dense: 120 MB."""


@dataclass(frozen=True)
class Terms:
    """The terms of some texts, which turn any texts into vectors.

    Attributes:
        places: term to its column.
        weights: inverse document frequency of each column.
    """

    places: dict[str, int]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Take the terms that most texts have, as many as the matrix of these texts may hold."""
        frequency = Counter(chain.from_iterable(set(_terms(text)) for text in texts))
        usual = frequency.most_common(max(1, _MOST_NUMBERS // max(1, len(texts))))
        kept = [(term, count) for term, count in usual if count >= _FEWEST_TEXTS]
        counts = np.array([count for _, count in kept], dtype=np.float64)
        return cls({term: place for place, (term, _) in enumerate(kept)}, np.log((1 + len(texts)) / (1 + counts)) + 1)

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """Return texts as vectors: 1 + log of a term's count, times its inverse document frequency, of length 1.

        Args:
            texts: N of them.

        Returns:
            fp32 [N, terms], one column at least.
        """
        matrix = np.zeros((len(texts), max(1, len(self.places))), dtype=np.float32)
        for row, text in enumerate(texts):
            for term, count in Counter(_terms(text)).items():
                if (place := self.places.get(term)) is not None:
                    matrix[row, place] = (1 + np.log(count)) * self.weights[place]
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
        return torch.from_numpy(matrix / np.where(lengths > 0, lengths, 1))


@dataclass(frozen=True)
class WordProblem:
    """The regression of texts by their terms.

    Attributes:
        texts: N of them.
        labels: int64 [N], or of several labels a text fp64 [N, C].
        num_labels: C.
    """

    texts: Sequence[str]
    labels: torch.Tensor
    num_labels: int

    def apart(self, unseen: NDArray[np.bool_]) -> tuple[Problem, Problem]:
        """Return the regression of all but some texts, bool [N], and that of those, both by the terms of the former.

        Terms and weights that unseen texts have a say in would know something of them.
        """
        seen_texts, unseen_texts = (list(compress(self.texts, rows)) for rows in (~unseen, unseen))
        terms = Terms.of(seen_texts)
        return self._part(terms, seen_texts, ~unseen), self._part(terms, unseen_texts, unseen)

    def whole(self, terms: Terms) -> Problem:
        """Return the regression of all texts by some terms."""
        return self._part(terms, self.texts, np.ones(len(self.texts), dtype=np.bool_))

    def _part(self, terms: Terms, texts: Sequence[str], rows: NDArray[np.bool_]) -> Problem:
        return Problem(terms.vectors(texts), self.labels[torch.from_numpy(rows)], self.num_labels)


def _terms(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return [*words, *(f"{first} {second}" for first, second in pairwise(words))]
