"""Which tokens carry loss, for tokenizers of every kind."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.data.chat.messages import Conversation
from ftkit.data.chat.template import ChatTemplate, Rendering
from ftkit.data.tokens.targets import mark_targets
from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.errors import DataError
from tests.made_tokenizers import KINDS, LOSSY

WORDS = [
    "The",
    "cat",
    "the end",
    "2+2?",
    "4",
    " ",
    "  ",
    "\n",
    ".",
    "ol\u00e9",
    "\u65e5\u672c",
    "a",
    '{"city": "',
    "s",
    "<tool>",
    *("\ufb01", "\u2460", "\u2026", "e\u0301"),  # a ligature, a number in a circle, three dots, an accent of its own
]
SPELLED = ["</s>", "<|im_end|>", "<|im_start|>", "<s>", "<unk>"]
PLAIN = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)
HOSTILE = st.lists(st.sampled_from(WORDS + SPELLED), min_size=1, max_size=6).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind):
    return TextTokenizer.of(KINDS[kind]())


def decoded(tokenizer, tokens, start, stop):
    """Return the text of some tokens where they stand: decoders treat a first token in their own way."""
    before, whole = (tokenizer.original.decode(tokens[:place], skip_special_tokens=False) for place in (start, stop))
    return whole[len(before) :]


def compared(kind, text):
    """Return a text as far as a kind of tokenizer keeps it."""
    if kind not in LOSSY:
        return text
    if kind == "word_piece":
        apart = unicodedata.normalize("NFD", text.lower())
        text = "".join(sign for sign in apart if unicodedata.category(sign) != "Mn")
    if kind == "unigram_that_normalizes":
        text = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"\s", "", text)


def special_ids(tokenizer):
    ids = set(tokenizer.original.convert_tokens_to_ids(list(tokenizer.special.names)))
    return ids - {tokenizer.original.unk_token_id}


def marked_texts(kind, tokenizer, marked):
    """Return the text of each run of tokens that carry loss."""
    borders = np.flatnonzero(np.diff(np.concatenate(([False], marked.targets, [False])).astype(np.int8)))
    tokens = marked.tokens.tolist()
    texts = [decoded(tokenizer, tokens, *span) for span in borders.reshape(-1, 2)]
    if kind == "llama_normalized":  # its special tokens are shown with the space that its normalizer adds
        texts = [re.sub(r" <\|im_end\|>(?=\s*$)", "<|im_end|>", text) for text in texts]
    return [compared(kind, text) for text in texts]


def assert_says(said, wanted, before):
    """A run of tokens says what it should, and before that at most what its first token has of the text before."""
    extra = said.removesuffix(wanted)
    assert said == extra + wanted
    assert before.endswith(extra)


@settings(max_examples=60, deadline=None)
@given(prompt=PLAIN, completion=PLAIN.filter(str.strip))
def test_a_completion_carries_loss_and_the_tokens_are_those_of_the_joined_text(kind, tokenizer, prompt, completion):
    prompt = f"The {prompt}"
    try:
        marked = mark_targets([[(prompt, False), (completion, True)]], tokenizer, is_rendered=False)[0]
    except DataError:
        assert kind == "in_python"  # a border inside a character's bytes, of which it does not tell
        return
    assert marked.tokens.tolist() == tokenizer.original(prompt + completion, add_special_tokens=False)["input_ids"]
    if tokenizer.original.unk_token_id in marked.tokens:
        return  # it stands for what the tokenizer does not know
    said = "".join(marked_texts(kind, tokenizer, marked))
    assert_says(said, compared(kind, completion), compared(kind, prompt))
    assert marked.num_across or said == compared(kind, completion)


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=3))
def test_special_tokens_that_a_chat_spells_out_are_characters_and_the_templates_own_are_tokens(kind, tokenizer, turns):
    texts = [text for turn in turns for text in turn]
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    conversation = Conversation(messages, tuple(range(1, len(messages), 2)))
    template = ChatTemplate(tokenizer.original, tokenizer.special, "answers")
    if kind == "in_python" and any(name in text for name in SPELLED for text in texts):
        with pytest.raises(DataError, match="spells out"):
            template.pieces(conversation, "line 1", Rendering())
        return
    pieces = template.pieces(conversation, "line 1", Rendering())
    marked = mark_targets([pieces], tokenizer, is_rendered=True)[0]
    num_special = np.isin(marked.tokens, list(special_ids(tokenizer))).sum()
    assert num_special == 1 + 2 * len(messages)  # <s>, and two around each turn
    if tokenizer.original.unk_token_id in marked.tokens:
        return  # it stands for what the tokenizer does not know
    said = [text.rstrip("\n") for text in marked_texts(kind, tokenizer, marked)]
    for text, (_, answer) in zip(said, turns, strict=True):
        assert_says(text, compared(kind, f"{answer}<|im_end|>"), compared(kind, "assistant\n"))
