"""The conversations of a dataset, from a file to targets."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from ftkit.config.tree import DataConfig
from ftkit.data.inspect import figures, first_sequences
from ftkit.data.prepare import prepare_data
from ftkit.errors import DataError
from tests.made_tokenizers import byte_level, in_python, word_piece

WITH_TOOLS = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def answer(text="Hello", **others):
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text, **others}]


@pytest.fixture
def tokenizer():
    return byte_level()


@pytest.fixture
def prepare(tmp_path, tokenizer):
    def prepared(rows, **settings):
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(
            dataset=str(path), **({"validation_share": 0, "test_share": 0, "max_length": 512} | settings)
        )
        return prepare_data(config, "causal-lm", tokenizer, seed=0)

    return prepared


def shown(data, tokenizer):
    sequences = first_sequences(data, tokenizer, 9)
    return ["".join(f"[{text}]" if is_target else text for text, is_target in one.parts) for one in sequences]


def test_arguments_of_one_row_do_not_get_the_keys_of_another(prepare, tokenizer, tmp_path):
    tokenizer.chat_template = WITH_TOOLS
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "string"}}}}]
    rows = [
        {"tools": tools, "messages": answer("", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])}
        for arguments in ({"city": "Oslo"}, {"a": 2, "b": None})
    ]
    rows = [json.loads(json.dumps(row).replace('"name": "f", "arg', '"arg')) for row in rows]
    texts = shown(prepare(rows), tokenizer)
    assert '{"city": "Oslo"}' in texts[0]
    assert '{"a": 2, "b": null}' in texts[1]
    assert all('<tools>[{"type": "function", "function": {"name": "f"' in text for text in texts)
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    config = DataConfig(dataset=str(tmp_path / "train.parquet"), validation_share=0, test_share=0, max_length=512)
    texts = shown(prepare_data(config, "causal-lm", tokenizer, seed=0), tokenizer)
    assert '{"city": "Oslo"}' in texts[0]
    assert '{"a": 2}' in texts[1]  # Parquet cannot tell a null from a key of another row


def test_what_a_template_leaves_out_is_refused_over_all_rows_and_may_be_allowed(prepare, tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.content }}", "{{ m.content.split('#')[-1] }}")
    rows = [{"messages": answer("56")}, {"messages": answer("why so#56")}, {"messages": answer("since#5")}]
    with pytest.raises(
        DataError, match=r"13 characters of 2 conversations, first in .*line 2.*data\.template_omissions=allow"
    ):
        prepare(rows)
    data = prepare(rows, template_omissions="allow")
    assert "[56<|im_end|>]" in shown(data, tokenizer)[1]
    assert any(line.startswith("warning: the chat template leaves out") for line in data.report.lines())


def test_every_row_that_cannot_be_used_is_counted(prepare):
    rows = [{"messages": [answer()[0]]}, {"messages": answer()}, {"messages": []}, {"messages": [{"content": "x"}]}]
    with pytest.raises(DataError, match=r"line 1 has no assistant's answer.*2 more rows .*the next one: .*line 3"):
        prepare(rows)


def test_keys_and_columns_that_nothing_reads_are_named(prepare):
    report = prepare([{"messages": answer(mood="glad"), "source": "web"}]).report
    lines = report.lines()
    assert "note: columns that nothing reads: 'source'" in lines
    assert "warning: the chat template does not read the key 'mood' of 1 message" in lines


def test_a_template_of_ones_own_replaces_the_tokenizers_and_stays_with_it(prepare, tokenizer, tmp_path):
    (tmp_path / "own.jinja").write_text(WITH_TOOLS)
    data = prepare([{"messages": answer()}], chat_template=str(tmp_path / "own.jinja"))
    assert shown(data, tokenizer) == ["<user>Hi</s><assistant>[Hello</s>]"]
    assert tokenizer.chat_template == WITH_TOOLS
    with pytest.raises(DataError, match=r"data\.chat_template='nowhere'"):
        prepare([{"messages": answer()}], chat_template="nowhere")


def test_prompts_are_written_as_a_chat_where_that_is_wanted(prepare, tokenizer):
    rows = [{"prompt": "Hi", "completion": "Hello", "system": "Be brief."}]
    asked = "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    answered = "<|im_start|>assistant\n[Hello<|im_end|>]\n"
    assert shown(prepare(rows, prompt_format="chat"), tokenizer) == [asked + answered]
    assert shown(prepare(rows), tokenizer) == ["Hi[Hello</s>]"]


def test_prompts_and_completions_of_messages_are_chats(prepare, tokenizer):
    user, said = answer()
    data = prepare([{"prompt": [user], "completion": [said]}])
    assert shown(data, tokenizer)[0].endswith("assistant\n[Hello<|im_end|>]\n")
    assert data.report.columns == {"messages": "prompt", "answers": "completion"}


def test_a_split_without_the_column_of_tools_has_none(tmp_path, tokenizer):
    tokenizer.chat_template = WITH_TOOLS
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": answer(), "tools": [{"name": "f"}]}) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps({"messages": answer()}) + "\n")
    data = prepare_data(DataConfig(dataset=str(tmp_path), validation_share=0), "causal-lm", tokenizer, seed=0)
    assert "<tools>" in tokenizer.decode(data.train.tokens)
    assert "<tools>" not in tokenizer.decode(data.test.tokens)


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"text": "a b c d"}, {"prompt_format": "chat"}),
        ({"text": "a b c d"}, {"loss_on": "last_answer"}),
        ({"prompt": "a", "completion": "b"}, {"template_omissions": "allow"}),
        ({"messages": answer()}, {"prompt_format": "plain"}),
        ({"text": "a b c d", "label": "x"}, {"label_column": "label"}),
    ],
)
def test_a_key_that_has_no_effect_is_named(row, settings, prepare):
    (key,) = settings
    assert any(f"data.{key} has no effect on" in line for line in prepare([row], **settings).report.lines())


def test_the_share_of_tokens_that_are_not_known_is_told(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "the cat", "completion": "\u0416\u0416"}\n')
    config = DataConfig(dataset=str(tmp_path / "d.jsonl"), validation_share=0, test_share=0)
    lines = prepare_data(config, "causal-lm", word_piece(), seed=0).report.lines()
    assert any(line.startswith("warning: train: ") and "what the tokenizer does not know" in line for line in lines)


def test_a_tokenizer_without_a_fast_form_is_named(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "the cat", "completion": " sat"}\n')
    config = DataConfig(dataset=str(tmp_path / "d.jsonl"), validation_share=0, test_share=0)
    lines = prepare_data(config, "causal-lm", in_python(), seed=0).report.lines()
    assert any("no fast form" in line for line in lines)


def test_targets_that_are_cut_off_are_counted_with_the_length_that_keeps_them(prepare):
    rows = [
        {"prompt": "a", "completion": "b " * 40},
        {"prompt": "c " * 40, "completion": "d"},
        {"prompt": "e", "completion": "f"},
    ]
    report = prepare(rows, max_length=30).report
    lost = [line for line in report.lines() if "target" in line and line.startswith("warning")]
    assert any("1 sequence has no target left at max_length; left out" in line for line in lost)
    assert any("1 sequence loses a part of its targets at max_length" in line for line in lost)
    keeping = int(lost[0].split(" % of the texts whole, ")[1].split()[0])
    report = prepare(rows, max_length=keeping).report
    assert not [line for line in report.lines() if line.startswith("warning")]
    assert report.num_targets["train"] > 40


def test_special_tokens_in_texts_are_counted_and_may_be_tokens(prepare, tokenizer):
    rows = [{"prompt": "a </s> b", "completion": "c"}, {"prompt": "d", "completion": "e"}]
    data = prepare(rows)
    assert (data.train.tokens == tokenizer.eos_token_id).sum() == 2
    assert any("1 text spells out special tokens" in line and "characters" in line for line in data.report.lines())
    data = prepare(rows, special_tokens_in_text="tokens")
    assert (data.train.tokens == tokenizer.eos_token_id).sum() == 3


def test_line_ends_are_normalised_and_counted(prepare, tokenizer):
    data = prepare([{"prompt": "a\r\nb", "completion": "c\r\n"}, {"prompt": "d", "completion": "e"}])
    assert shown(data, tokenizer)[0] == "a\nb[c\n</s>]"
    assert "note: 2 line ends CR LF are read as LF" in data.report.lines()


def test_figures_are_plain_values(prepare):
    known = json.loads(json.dumps(figures(prepare([{"messages": answer()}]))))
    assert known["num_targets"] == {"train": 6}
    assert known["length_histogram"]["train"][-1][1] == 1


def test_documents_begin_as_the_tokenizer_begins_texts(tmp_path, tokenizer):
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "d.txt").write_text("a\nb\n")
    for name, text in (("d.jsonl", "<s>a</s><s>b</s>"), ("d.txt", "<s>a\nb\n")):
        config = DataConfig(dataset=str(tmp_path / name), validation_share=0, test_share=0)
        assert tokenizer.decode(prepare_data(config, "causal-lm", tokenizer, seed=0).train.tokens) == text
