"""A running text is tokenized as a whole, window by window."""

import numpy as np
import pytest

from ftkit.data.tokens import running
from ftkit.data.tokens.running import tokens_of_text
from ftkit.data.tokens.tokenizer import TextTokenizer
from tests.made_tokenizers import KINDS

SENTENCES = [
    "The cat sat on the mat, and the dog ran to it.\n",
    "\n",
    "    return a + b  \n",
    "2+2? It is 4. ol\u00e9\n",
    "It " * 90,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_in_windows_has_the_tokens_of_the_whole(kind, monkeypatch):
    monkeypatch.setattr(running, "_PIECE_CHARACTERS", 700)
    monkeypatch.setattr(running, "_OVERLAP_CHARACTERS", 200)
    tokenizer = TextTokenizer.of(KINDS[kind]())
    chance = np.random.default_rng(0)
    lines = [SENTENCES[place] for place in chance.integers(len(SENTENCES), size=300)]
    found = np.concatenate(list(tokens_of_text(lines, tokenizer))).tolist()
    assert found == tokenizer.ids(["".join(lines)])[0]


def test_windows_that_never_meet_are_tokenized_together(monkeypatch):
    monkeypatch.setattr(running, "_PIECE_CHARACTERS", 300)
    monkeypatch.setattr(running, "_OVERLAP_CHARACTERS", 100)
    tokenizer = TextTokenizer.of(KINDS["words_in_the_vocabulary"]())
    lines = ["x" * 299 + "\n"] * 5  # one word, longer than an overlap
    assert np.concatenate(list(tokens_of_text(lines, tokenizer))).tolist() == tokenizer.ids(["".join(lines)])[0]
