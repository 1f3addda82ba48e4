"""The baseline that knows no language: words and pairs of words, weighted by TF-IDF."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import torch

_WORD = re.compile(r"\w+")
_FEWEST_TEXTS = 2
"""A term of a single text says nothing of others."""
_MOST_NUMBERS = 3 * 10**7
"""In the matrix, which is dense: 120 MB."""


def tf_idf(texts: Sequence[str]) -> torch.Tensor:
    """Return texts as vectors: 1 + log of a term's count, times its inverse document frequency, of length 1.

    Args:
        texts: N of them.

    Returns:
        fp32 [N, terms]: the terms that most texts have, as many as the matrix may hold.
    """
    counted = [Counter(_terms(text)) for text in texts]
    frequency = Counter(chain.from_iterable(counted))
    usual = [term for term, count in frequency.most_common(max(1, _MOST_NUMBERS // max(1, len(texts))))]
    places = {term: place for place, term in enumerate(usual) if frequency[term] >= _FEWEST_TEXTS}
    matrix = np.zeros((len(texts), max(1, len(places))), dtype=np.float32)
    for row, terms in enumerate(counted):
        for term, count in terms.items():
            if (place := places.get(term)) is not None:
                matrix[row, place] = (1 + np.log(count)) * (np.log((1 + len(texts)) / (1 + frequency[term])) + 1)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return torch.from_numpy(matrix / np.where(lengths > 0, lengths, 1))


def _terms(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return [*words, *(f"{first} {second}" for first, second in pairwise(words))]
