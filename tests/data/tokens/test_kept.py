"""Tokens that were made before: the same as made anew, found only where all that decides them is the same."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from ftkit.data.tokens import kept
from ftkit.data.tokens.encode import encode_documents, encode_pieces, encode_texts
from ftkit.data.tokens.tokenizer import TextTokenizer

TEXTS = [f"film {number} is {'very ' * (number % 7)}good. </s> [SEP]\n" for number in range(50)]
WAYS = {
    "texts": lambda tokenizer, texts: encode_texts(texts, tokenizer, 8),
    "pairs": lambda tokenizer, texts: encode_texts(texts, tokenizer, 8, texts[::-1]),
    "documents": lambda tokenizer, texts: encode_documents(texts, tokenizer, 8, is_lines=False),
    "lines": lambda tokenizer, texts: encode_documents(texts, tokenizer, 8, is_lines=True),
    "answers": lambda tokenizer, texts: encode_pieces(
        [[("Q: what? A: ", False), (text, True)] for text in texts], tokenizer, 16, is_whole=False
    ),
}


class Store:
    """A store in memory, which counts what it finds."""

    def __init__(self):
        self.held, self.num_found = {}, 0

    def get(self, key):
        self.num_found += key in self.held
        return self.held.get(key)

    def put(self, key, arrays):
        self.held[key] = arrays


@pytest.fixture(autouse=True)
def _small_chunks_are_kept_too(monkeypatch):
    monkeypatch.setattr(kept, "_FEWEST_CHARACTERS", 1)


@pytest.mark.parametrize("way", WAYS)
def test_tokens_that_were_kept_are_those_that_are_made(way, minilm):
    store = Store()
    plain = WAYS[way](TextTokenizer.of(minilm), TEXTS)
    made = WAYS[way](TextTokenizer.of(minilm, store=store), TEXTS)
    assert store.held
    assert store.num_found == 0
    found = WAYS[way](TextTokenizer.of(minilm, store=store), TEXTS)  # with other letters of chance
    assert store.num_found == len(store.held)
    for one in (made, found):
        assert one.losses == plain.losses
        assert (one.whole_lengths == plain.whole_lengths).all()
        for name in ("tokens", "offsets", "labels", "segments"):
            ours, theirs = getattr(one.split, name), getattr(plain.split, name)
            assert (ours is None and theirs is None) or (ours.dtype == theirs.dtype and np.array_equal(ours, theirs))


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer, store: encode_texts(
            [*TEXTS[:-1], TEXTS[-1] + "!"], TextTokenizer.of(tokenizer, store=store), 8
        ),
        lambda tokenizer, store: encode_texts(TEXTS, TextTokenizer.of(tokenizer, store=store), 9),
        lambda tokenizer, store: encode_texts(TEXTS, TextTokenizer.of(tokenizer, are_characters=False, store=store), 8),
        lambda tokenizer, store: encode_texts(
            ["".join(TEXTS[:2]), *TEXTS[2:]], TextTokenizer.of(tokenizer, store=store), 8
        ),
    ],
    ids=["text", "max_length", "special tokens", "borders between texts"],
)
def test_whatever_decides_tokens_decides_where_they_are_kept(change, minilm):
    store = Store()
    encode_texts(TEXTS, TextTokenizer.of(minilm, store=store), 8)
    change(minilm, store)
    assert store.num_found == 0


def test_another_vocabulary_is_another_tokenizer(minilm):
    store, other = Store(), AutoTokenizer.from_pretrained(minilm.name_or_path)
    other.add_tokens(["film"])
    encode_texts(TEXTS, TextTokenizer.of(minilm, store=store), 8)
    encode_texts(TEXTS, TextTokenizer.of(other, store=store), 8)
    assert store.num_found == 0


def test_a_text_with_the_sign_that_stands_for_the_letters_of_chance_is_another_text(minilm):
    store = Store()
    tokenizer = TextTokenizer.of(minilm, store=store)
    for sign in (tokenizer.special.template_mark, "\0", "\0\1"):
        tokenizer.ids([f"a film {sign}aaaa"])
    assert store.num_found == 0
