"""Prompts of several columns."""

import json

import pytest

from ftkit.config.tree import DataConfig
from ftkit.data.prepare import prepare_data
from ftkit.data.table.columns import choose_columns
from ftkit.data.table.prompts import PromptTemplate, headed
from ftkit.errors import DataError
from tests.made_tokenizers import byte_level

ALPACA = [
    {"instruction": "Add.", "input": "2, 3", "output": "5"},
    {"instruction": "Name a colour.", "input": "", "output": "Red"},
]


def columns(names, has_template=False, **settings):
    return choose_columns(DataConfig(dataset="d", **settings), "causal-lm", names, has_template=has_template)


def shown(tmp_path, rows, **settings):
    """Return each sequence, with its answers in brackets."""
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = byte_level()
    config = DataConfig(dataset=str(path), validation_share=0, test_share=0, **settings)
    data = prepare_data(config, "causal-lm", tokenizer, seed=0)
    texts = []
    for start, stop in zip(data.train.offsets[:-1], data.train.offsets[1:], strict=True):
        text = tokenizer.decode(data.train.tokens[start:stop])
        answer = tokenizer.decode(data.train.tokens[start:stop][data.train.labels[start:stop]])
        texts.append(text.replace(answer, f"[{answer}]") if text.endswith(answer) else text + "?")
    return texts, data.report


def test_a_paragraph_of_empty_columns_leaves_no_trace():
    template = PromptTemplate.parse("Do:\n\n## A\n{a}\n\n## B\n{b} {{x}}\n\nEnd", ["a", "b"])
    assert template.fill({"a": "1", "b": "2"}) == "Do:\n\n## A\n1\n\n## B\n2 {x}\n\nEnd"
    assert template.fill({"a": "1", "b": " "}) == "Do:\n\n## A\n1\n\nEnd"
    assert template.fill({"a": "", "b": ""}) == ""


def test_a_text_with_blank_lines_or_braces_is_filled_in_as_it_is():
    template = PromptTemplate.parse("{a}\n\n{b}", ["a", "b"])
    assert template.fill({"a": "x\n\n{b}", "b": "{a}"}) == "x\n\n{b}\n\n{a}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{pronpt}", "did you mean 'prompt'"),
        ("{prompt", "cannot be read"),
        ("no column", "must name columns in braces"),
        ("{prompt:>5}", "nothing else of Python's formats"),
        ("{prompt!r}", "nothing else of Python's formats"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(text, words):
    with pytest.raises(DataError, match=words):
        PromptTemplate.parse(text, ["prompt", "other"])


def test_instructions_get_headings_where_there_is_no_chat_template():
    found = columns(["instruction", "input", "output"])
    assert found.prompt.text == "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    assert not found.as_chat
    assert headed(["question"], "answer") == "### Question:\n{question}\n\n### Answer:\n"


def test_instructions_become_a_chat_where_there_is_a_chat_template():
    found = columns(["instruction", "input", "output", "system", "id"], has_template=True)
    assert (found.prompt.text, found.second, found.system) == ("{instruction}\n\n{input}", "output", "system")
    assert found.as_chat
    assert not columns(["instruction", "input", "output"], has_template=True, prompt_format="plain").as_chat


@pytest.mark.parametrize("settings", [{}, {"prompt_column": "prompt", "completion_column": "completion"}])
def test_prompts_and_named_columns_are_taken_as_they_are_written(settings):
    found = columns(["prompt", "completion"], has_template=True, **settings)
    assert found.prompt is None
    assert not found.as_chat
    assert columns(["prompt", "completion"], prompt_format="chat", **settings).as_chat


def test_sets_of_columns_that_overlap_are_refused():
    with pytest.raises(DataError, match="several could be the text column"):
        columns(["instruction", "input", "output", "response"])


def test_an_alpaca_file_reaches_the_prompt_whole(tmp_path):
    texts, report = shown(tmp_path, ALPACA, prompt_format="plain")
    assert texts == [
        "### Instruction:\nAdd.\n\n### Input:\n2, 3\n\n### Response:\n[5</s>]",
        "### Instruction:\nName a colour.\n\n### Response:\n[Red</s>]",
    ]
    assert report.columns == {"prompt": "instruction + input", "completion": "output"}
    assert any("### Instruction" in line and "data.prompt_template" in line for line in report.lines())


def test_a_template_of_ones_own_names_its_columns(tmp_path):
    texts, report = shown(tmp_path, ALPACA, prompt_template="{input} | {instruction} ->", completion_column="output")
    assert texts[0] == "2, 3 | Add. ->[5</s>]"
    assert report.ignored_columns == ()


def test_whole_numbers_are_their_digits_in_prompts_and_answers(tmp_path):
    rows = [{"prompt": "2+2=", "completion": 4}, {"prompt": "3+5=", "completion": 8}]
    assert shown(tmp_path, rows)[0] == ["2+2=[4</s>]", "3+5=[8</s>]"]
    rows = [{"instruction": "Double.", "input": 21, "output": "42"}]
    assert shown(tmp_path, rows, prompt_format="plain")[0][0].endswith("### Input:\n21\n\n### Response:\n[42</s>]")


def test_answers_of_decimals_are_refused_with_the_cure(tmp_path):
    with pytest.raises(DataError, match=r"write them as texts, since 5 and 5\.0"):
        shown(tmp_path, [{"prompt": "a", "completion": 0.5}])


def test_a_column_that_belongs_to_the_question_and_is_not_read_is_warned_of(tmp_path):
    _, report = shown(tmp_path, ALPACA, prompt_column="instruction", completion_column="output")
    assert report.ignored_columns == ("input",)
    assert any("'input'" in line and line.startswith("warning") for line in report.lines())
