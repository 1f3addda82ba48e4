"""Chat templates: what is an answer, what they leave out, and the forms that they want calls in."""

import json
from datetime import date

import pytest

from ftkit.data.chat.messages import Conversation
from ftkit.data.chat.rendered import unread_keys
from ftkit.data.chat.template import ChatTemplate, Rendering, wants_parts
from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.errors import DataError
from tests.made_tokenizers import byte_level

BODY = "{% for m in messages %}<{{ m.role }}>SHOWN</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TURNS = BODY.replace("SHOWN", "{{ m.content }}")
ANSWER_AFTER_THINKING = BODY.replace("SHOWN", "{{ m.content.split('</think>')[-1] }}")
CALLS = "{% if tools %}<tools>{{ tools | tojson }}{% endif %}" + BODY.replace(
    "SHOWN", "{{ m.content }}{% for c in m.tool_calls %}<call>{{ CALL }}{% endfor %}"
)

THINKS_AT_LAST = BODY.replace(
    "SHOWN", "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
)
CLOSES_AT_LAST = TURNS.replace("{% if add_g", "{% if not add_generation_prompt %}<unk>{% endif %}{% if add_g")


@pytest.fixture(scope="module")
def original():
    return byte_level()


def written(original, template, messages, answers=None, tools=None, loss_on="answers"):
    original.chat_template = template
    tokenizer = TextTokenizer.of(original)
    rendering = Rendering()
    conversation = Conversation(messages, answers or (len(messages) - 1,), tools)
    pieces = ChatTemplate(original, tokenizer.special, loss_on).pieces(conversation, "line 1", rendering)
    for name in ("</s>", "<unk>"):
        pieces = [(text.replace(tokenizer.special.as_tokenized(name), name), is_answer) for text, is_answer in pieces]
    return [piece for piece in pieces if piece[0]], rendering


def chat(*contents):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


def call(arguments, content=None):
    said = {} if content is None else {"content": content}
    return {"role": "assistant", **said, "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]}


def test_context_and_answers_alternate(original):
    pieces, rendering = written(original, TURNS, chat("Hi", "Hello", "2+2?", "4"), (1, 3))
    assert pieces == [
        ("<user>Hi</s><assistant>", False),
        ("Hello</s>", True),
        ("<user>2+2?</s><assistant>", False),
        ("4</s>", True),
    ]
    assert rendering == Rendering()


def test_a_turn_that_does_not_train_is_context(original):
    pieces, _ = written(original, TURNS, chat("Hi", "wrong", "no", "right"), (3,))
    assert [text for text, is_answer in pieces if is_answer] == ["right</s>"]
    assert "wrong" in pieces[0][0]


def test_everything_carries_loss_where_that_is_wanted(original):
    pieces, _ = written(original, TURNS, chat("Hi", "Hello"), (), loss_on="everything")
    assert pieces == [("<user>Hi</s><assistant>Hello</s>", True)]


def test_white_space_after_the_end_of_an_answer_is_context(original):
    pieces, _ = written(original, TURNS.replace("</s>", "</s>\n"), chat("Hi", "Hello"))
    assert pieces[1:] == [("Hello</s>", True), ("\n", False)]


def test_white_space_at_the_end_of_an_answer_without_an_end_token_is_learned(original):
    pieces, _ = written(original, TURNS.replace("</s>", "\n"), chat("Hi", "Hello"))
    assert pieces[1:] == [("Hello\n", True)]


def test_a_prompt_that_says_more_than_the_answer_begins_with_is_not_an_obstacle(original):
    template = TURNS.replace("<assistant>{% endif", "<assistant><think>{% endif")
    pieces, _ = written(original, template, chat("Hi", "Hello"))
    assert pieces == [("<user>Hi</s><assistant>", False), ("Hello</s>", True)]


def test_reasoning_that_a_template_drops_is_counted(original):
    pieces, rendering = written(original, ANSWER_AFTER_THINKING, chat("7*8?", "<think>7*8 is 56</think>56"))
    assert pieces[-1] == ("56</s>", True)
    assert (rendering.omitted.num_conversations, rendering.omitted.num_characters) == (
        1,
        len("<think>7*8 is 56</think>"),
    )
    assert rendering.omitted.first_place == "line 1"


@pytest.mark.parametrize("content", ["no", "4", "</s>"])
def test_a_short_message_that_a_template_drops_is_counted(content, original):
    template = BODY.replace("SHOWN", "{% if loop.index0 != 2 %}{{ m.content }}{% endif %}")
    _, rendering = written(original, template, chat("4 no </s>", "b", content, "c"), (1, 3))
    assert rendering.omitted.num_characters == len(content)


@pytest.mark.parametrize(
    "content", [" padded \n", "two\n\nlines", '"quoted" \\ and \u65e5', "<user>", "a" * 5000, "</s>", "{{ braces }}"]
)
@pytest.mark.parametrize("shown", ["{{ m.content }}", "{{ m.content | trim }}", "{{ m.content | tojson }}"])
def test_what_a_template_trims_or_writes_as_json_is_found(content, shown, original):
    _, rendering = written(original, BODY.replace("SHOWN", shown), chat(content, content))
    assert rendering.omitted.num_conversations == 0


def test_tools_that_a_template_does_not_name_are_left_out(original):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    _, rendering = written(original, TURNS, chat("Hi", "Hello"), tools=tools)
    assert rendering.omitted.example == "weather"
    _, rendering = written(original, CALLS, chat("Hi", "Hello"), tools=tools)
    assert rendering.omitted.num_conversations == 0


@pytest.mark.parametrize("shown", ["c.function | tojson", "c.function.name + ' ' + c.function.arguments"])
@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("content", [None, ""])
def test_calls_are_given_in_the_form_that_a_template_wants(shown, as_text, content, original):
    arguments = {"city": "Oslo", "unit": None}
    said = call(json.dumps(arguments) if as_text else arguments, content)
    pieces, rendering = written(original, CALLS.replace("CALL", shown), [chat("?")[0], said])
    assert json.dumps(arguments) in pieces[-1][0]
    assert rendering.omitted.num_conversations == 0


def test_arguments_are_not_written_as_python_prints_them(original):
    template = CALLS.replace("CALL", "c.function.name ~ ' ' ~ c.function.arguments")
    pieces, rendering = written(original, template, [chat("?")[0], call({"city": "Oslo"})])
    assert pieces[-1][0] == '<call>weather {"city": "Oslo"}</s>'
    assert rendering.omitted.num_conversations == 0


PARTS = "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("shown", [PARTS, "{{ m.content[0].text }}", "{{ m.content[0]['text'] | string }}"])
@pytest.mark.parametrize("template", [TURNS, THINKS_AT_LAST, CLOSES_AT_LAST], ids=["plain", "begin", "end"])
def test_a_template_that_wants_contents_in_parts_gets_them(shown, template, original):
    messages = chat("Hi", "Hello", "", "4 na", "Bye", "Ciao")
    expected, _ = written(original, template, messages, (1, 3, 5))
    pieces, rendering = written(original, template.replace("{{ m.content }}", shown), messages, (1, 3, 5))
    assert pieces == expected
    assert rendering == Rendering()
    assert wants_parts(original)


def test_calls_beside_contents_in_parts_are_found(original):
    template = CALLS.replace("CALL", "c.function | tojson").replace("{{ m.content }}", PARTS)
    pieces, rendering = written(original, template, [chat("?")[0], call({"city": "Oslo"}, "So:")])
    assert pieces[-1][0] == 'So:<call>{"name": "weather", "arguments": {"city": "Oslo"}}</s>'
    assert rendering == Rendering()


@pytest.mark.parametrize("shown", ["{{ m.content[:1] }}", "{{ m.content[0] | tojson }}", "{{ m.content[1:] }}"])
def test_contents_are_not_written_as_python_or_json_prints_their_parts(shown, original):
    _, rendering = written(original, BODY.replace("SHOWN", shown), chat("Hi", "Hello"))
    assert rendering.omitted.num_conversations == 1
    assert not wants_parts(original)


def test_a_template_that_takes_texts_gets_them(original):
    original.chat_template = TURNS
    assert not wants_parts(original)


def test_calls_that_a_template_drops_are_counted(original):
    _, rendering = written(original, TURNS, [chat("?")[0], call({"city": "Oslo"}, "")])
    assert rendering.omitted.num_characters == len("weathercityOslo")


def test_a_key_that_a_template_does_not_read_is_named():
    messages = [{"role": "user", "content": "x", "name": "Eva", "mood": "glad"}]
    assert unread_keys(messages, "{{ m.role }}{{ m.name }}", "<user>x") == {"mood": 1}
    assert not unread_keys(messages, "{{ m | tojson }}", '{"mood": "glad", "name": "Eva"}')


@pytest.mark.parametrize("text", ["Hello", "Hi", "zebra", "a", "quick", "</s>", "Hello</s>", " padded \n"])
@pytest.mark.parametrize("template", [THINKS_AT_LAST, CLOSES_AT_LAST], ids=["begin", "end"])
def test_a_last_turn_that_is_written_in_another_way_hides_no_earlier_answer(template, text, original):
    messages = chat("Hi", text, text, text, "Bye", "Ciao")
    pieces, rendering = written(original, template, messages, (1, 3, 5))
    answers = [text for text, is_answer in pieces if is_answer]
    assert answers[:2] == [f"{text}</s>", f"{text}</s>"]
    assert answers[2] in ("<think></think>Ciao</s>", "Ciao</s><unk>")
    assert rendering.omitted.num_conversations == 0


def test_calls_before_a_last_turn_that_is_written_in_another_way_are_found(original):
    template = THINKS_AT_LAST.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}")
    pieces, _ = written(original, template, [chat("?")[0], call({"city": "Oslo"}), *chat("4 C", "Cold.")], (1, 3))
    answers = [text for text, is_answer in pieces if is_answer]
    assert answers[0] == '[{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]</s>'


def test_a_beginning_that_the_prompt_says_already_is_found(original):
    template = TURNS.replace("<assistant>{% endif", "<assistant><think>{% endif")
    pieces, rendering = written(original, template, chat("Hi", "<think>so</think>Hello"))
    assert pieces == [("<user>Hi</s><assistant><think>", False), ("so</think>Hello</s>", True)]
    assert rendering.omitted.num_conversations == 0


def test_a_template_that_asks_for_the_date_is_given_the_same_one_every_day(original):
    original.chat_template = "{{ strftime_now('%d %b %Y') }}" + TURNS
    template = ChatTemplate(original, TextTokenizer.of(original).special, "answers", date(2024, 7, 26))
    pieces = template.pieces(Conversation(chat("Hi", "Hello"), (1,)), "line 1", Rendering())
    assert pieces[0][0].startswith("26 Jul 2024<user>")
    assert template.asks_for_date


def test_a_template_that_rewrites_earlier_turns_is_refused_with_ways_round(original):
    template = "{{ messages | length }}" + TURNS
    with pytest.raises(DataError, match=r"line 1.*rewrites earlier turns.*data\.loss_on=last_answer"):
        written(original, template, chat("a", "b", "c", "d"), (1, 3))
    template = BODY.replace("SHOWN", "{{ m.content if loop.last or m.role == 'user' else 'gone' }}")
    pieces, _ = written(original, template, chat("a", "b", "c", "d"), (3,), loss_on="last_answer")
    assert pieces[-1] == ("d</s>", True)
