"""Data for causal language modelling: blocks of text, prompt and completion, chats."""

import json
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftkit.config.tree import DataConfig
from ftkit.data.prepare import prepare_data
from ftkit.errors import DataError

TASK = "causal-lm"
ALL = {"validation_share": 0.0, "test_share": 0.0}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer():
    """One token a byte, a token for each role, and a template that writes `<role>content<eos>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    made.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>", "<system>"]})
    made.chat_template = TEMPLATE
    return made


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepare(tokenizer, dataset, seed=0, **settings):
    return prepare_data(DataConfig(dataset=str(dataset), **settings), TASK, tokenizer, seed)


def texts(tokenizer, split):
    """Return each sequence with its targets in brackets, neighbours together."""
    shown = []
    for start, stop in pairwise(split.offsets):
        pieces = np.flatnonzero(np.diff(split.labels[start:stop].astype(np.int8))) + start + 1
        borders = [start, *pieces, stop]
        parts = [(tokenizer.decode(split.tokens[a:b]), split.labels[a]) for a, b in pairwise(borders)]
        shown.append("".join(f"[{text}]" if is_target else text for text, is_target in parts))
    return shown


def test_a_text_file_is_cut_into_blocks_without_loss_of_a_character(tmp_path, tokenizer):
    text = "one line\n\nanother, longer line\n" * 7
    (tmp_path / "book.txt").write_text(text)
    train = prepare(tokenizer, tmp_path / "book.txt", max_length=10, **ALL).train
    assert tokenizer.decode(train.tokens) == text
    assert set(train.lengths[:-1].tolist()) == {10}
    assert (train.num_targets == train.lengths - 1).all()


def test_a_text_file_is_split_into_whole_pieces(tmp_path, tokenizer):
    (tmp_path / "book.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    data = prepare(tokenizer, tmp_path / "book.txt", max_length=16)
    assert tokenizer.decode(data.train.tokens).startswith("line 0\n")
    assert tokenizer.decode(data.validation.tokens).startswith("line 80\n")
    assert tokenizer.decode(data.test.tokens) == "".join(f"line {number}\n" for number in range(90, 100))


def test_documents_are_joined_by_the_end_token(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"text": "ab"}, {"text": "cde"}])
    train = prepare(tokenizer, path, max_length=4, **ALL).train
    assert texts(tokenizer, train) == ["a[b<eos>c]", "d[e<eos>]"]


def test_a_last_block_of_one_token_is_left_out(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"text": "abcd"}])
    train = prepare(tokenizer, path, max_length=4, **ALL).train
    assert texts(tokenizer, train) == ["a[bcd]"]


def test_completions_carry_the_loss_and_the_end(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"prompt": "2+2=", "completion": "4"}, {"prompt": "", "completion": "hi"}])
    data = prepare(tokenizer, path, **ALL)
    assert texts(tokenizer, data.train) == ["2+2=[4<eos>]", "h[i<eos>]"]  # nothing predicts a first token
    assert data.train.labels.dtype == np.bool_
    assert data.train.num_targets.tolist() == [2, 2]
    assert data.report.columns == {"prompt": "prompt", "completion": "completion"}


def test_a_prompt_that_fills_max_length_is_left_out_and_counted(tmp_path, tokenizer):
    path = write(
        tmp_path / "d.jsonl", [{"prompt": "long prompt", "completion": "x"}, {"prompt": "p", "completion": "abcdefg"}]
    )
    data = prepare(tokenizer, path, max_length=5, **ALL)
    assert texts(tokenizer, data.train) == ["p[abcd]"]
    assert data.report.dropped_without_targets == 1


def test_assistant_turns_alone_carry_the_loss(tmp_path, tokenizer):
    turns = [
        ("system", "s"),
        ("user", "hi"),
        ("assistant", "yo"),
        ("user", "more"),
        ("assistant", "ok"),
        ("user", "bye"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    train = prepare(tokenizer, write(tmp_path / "d.jsonl", [{"messages": messages}]), **ALL).train
    assert texts(tokenizer, train) == [
        "<system>s<eos><user>hi<eos><assistant>[yo<eos>]<user>more<eos><assistant>[ok<eos>]"
    ]


def test_an_opening_of_the_assistant_is_context(tmp_path, tokenizer):
    turns = [("assistant", "welcome"), ("user", "hi"), ("assistant", "yo")]
    messages = [{"role": role, "content": content} for role, content in turns]
    train = prepare(tokenizer, write(tmp_path / "d.jsonl", [{"messages": messages}]), **ALL).train
    assert texts(tokenizer, train) == ["<assistant>welcome<eos><user>hi<eos><assistant>[yo<eos>]"]


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path, tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    with pytest.raises(DataError, match="rewrites earlier turns"):
        prepare(tokenizer, write(tmp_path / "d.jsonl", [{"messages": messages}]), **ALL)


def test_a_template_that_refuses_a_role_is_quoted_with_the_row(tmp_path, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    with pytest.raises(DataError, match=r"line 1: .*roles must alternate"):
        prepare(tokenizer, write(tmp_path / "d.jsonl", [{"messages": messages}]), **ALL)


def test_blocks_are_drawn_after_cutting(tmp_path, tokenizer):
    (tmp_path / "book.txt").write_text("".join(f"line {number}\n" for number in range(100)))
    data = prepare(tokenizer, tmp_path / "book.txt", max_length=8, max_train_samples=5, max_eval_samples=2)
    assert data.report.rows == {"train": 5, "validation": 2, "test": 2}
    assert (data.train.lengths <= 8).all()
    assert (data.train.num_targets == data.train.lengths - 1).all()
    assert "5 of" in data.report.origins["train"]


def test_the_demo_is_plain_text_for_a_language_model(minilm):
    data = prepare_data(DataConfig(max_train_samples=20, max_eval_samples=5), TASK, minilm, 0)
    assert data.label_names is None
    assert data.report.label_counts == {}
    assert data.train.lengths.tolist() == [128] * 20
    assert (data.train.num_targets == 127).all()


def said(data):
    return "\n".join(data.report.lines())


def test_a_first_token_that_nothing_predicts_is_told(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"prompt": "", "completion": "ab"}, {"prompt": "c", "completion": "d"}])
    data = prepare(tokenizer, path, **ALL)
    assert texts(tokenizer, data.train) == ["a[b<eos>]", "c[d<eos>]"]
    assert "the first token of 1 sequence carries no loss" in said(data)


def test_texts_that_no_token_closes_are_told(tmp_path, tokenizer):
    tokenizer.eos_token = None
    for name, row in (("pairs", {"prompt": "a", "completion": "b"}), ("documents", {"text": "ab"})):
        data = prepare(tokenizer, write(tmp_path / f"{name}.jsonl", [row, dict.fromkeys(row, "cd")]), **ALL)
        assert "2 texts end without a token that says so" in said(data)


def test_a_last_token_that_would_be_alone_is_told(tmp_path, tokenizer):
    data = prepare(tokenizer, write(tmp_path / "d.jsonl", [{"text": "abcdefgh"}]), max_length=8, **ALL)
    assert texts(tokenizer, data.train) == ["a[bcdefgh]"]
    assert "the last token of 1 split would be a block of its own" in said(data)


def test_answers_that_all_carry_no_loss_are_not_blamed_on_the_length(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    path = write(tmp_path / "d.jsonl", [{"messages": turns}] * 2)
    with pytest.raises(DataError, match=r"no answer carries loss.*weight 0.*data\.loss_on=everything"):
        prepare(tokenizer, path, **ALL)
    assert (
        texts(tokenizer, prepare(tokenizer, path, loss_on="everything", **ALL).train)
        == ["<user>[a<eos><assistant>b<eos>]"] * 2
    )
