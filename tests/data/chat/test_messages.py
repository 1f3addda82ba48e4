"""Conversations in the forms that people write them."""

import json

import pytest

from ftkit.data.chat.messages import Seen, as_conversation, read_conversation
from ftkit.errors import DataError


def read(messages, seen=None, loss_on="answers", **others):
    return read_conversation({"first": messages, **others}, "line 1", seen or Seen(), loss_on)


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


HELLO = turns(("user", "Hi"), ("assistant", "Hello"))


def test_sharegpt_is_read_as_roles_and_contents_and_said():
    seen = Seen()
    written = [{"from": "system", "value": "s"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert read(written, seen).messages == [{"role": "system", "content": "s"}, *HELLO]
    assert {role: count for role, count in seen.roles.items() if count} == {"human": 1, "gpt": 1}


def test_a_function_call_of_sharegpt_becomes_a_tool_call():
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    written = [
        {"from": "human", "value": "?"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "4 C"},
        {"from": "gpt", "value": "4 degrees."},
    ]
    conversation = read(written)
    assert conversation.messages[1] == {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
    assert conversation.messages[2]["role"] == "tool"
    assert conversation.answers == (1, 3)


@pytest.mark.parametrize("messages", [json.dumps(HELLO), [json.dumps(message) for message in HELLO]])
def test_messages_may_be_json_text(messages):
    assert read(messages).messages == HELLO


def test_parts_of_text_are_joined_as_they_are():
    parts = [{"type": "text", "text": "He"}, "llo"]
    assert read([HELLO[0], {"role": "assistant", "content": parts}]).messages == HELLO


@pytest.mark.parametrize(
    ("written", "answers"),
    [
        ([{"weight": 0}, {"weight": 1}], (3,)),
        ([{"train": False}, {"train": True}], (3,)),
        ([{}, {"weight": 0}], (1,)),
        ([{"weight": 0}, {"train": False}], ()),
        ([{"weight": None}, {}], (1, 3)),
    ],
)
def test_turns_of_weight_zero_carry_no_loss(written, answers):
    first, second = ({"role": "assistant", "content": "x", **keys} for keys in written)
    conversation = read([HELLO[0], first, HELLO[0], second])
    assert conversation.answers == answers
    assert not any({"weight", "train"} & message.keys() for message in conversation.messages)


def test_the_last_answer_alone_carries_loss_where_that_is_wanted():
    assert read(HELLO * 3, loss_on="last_answer").answers == (5,)


def test_an_opening_of_the_assistant_is_context_unless_its_weight_is_one():
    seen = Seen()
    opening = {"role": "assistant", "content": "Welcome"}
    assert read([opening, *HELLO], seen).answers == (2,)
    assert seen.num_openings == 1
    assert read([opening | {"weight": 1}, *HELLO]).answers == (0, 2)


def test_what_follows_the_last_answer_is_left_out_and_counted():
    seen = Seen()
    assert read([*HELLO, *turns(("user", "bye"))], seen).messages == HELLO
    assert seen.num_trailing == 1
    assert len(read([*HELLO, *turns(("user", "bye"))], loss_on="everything").messages) == 3


def test_a_system_column_begins_the_conversation_where_it_is_not_empty():
    assert read(HELLO, system="Be brief.").messages[0] == {"role": "system", "content": "Be brief."}
    assert read(HELLO, system="Be brief.").answers == (2,)
    assert read(HELLO, system=" ").messages == HELLO


def test_a_system_message_that_stands_in_both_places_is_taken_once():
    both = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert read(both, system="Be brief.").messages == both
    with pytest.raises(DataError, match="another in a column"):
        read(both, system="Be long.")


def test_messages_of_a_prompt_are_context_for_those_of_its_completion():
    conversation = read(HELLO + HELLO[:1], second=HELLO[1:])
    assert conversation.messages == HELLO * 2
    assert conversation.answers == (3,)


def test_an_object_of_sequences_is_a_sequence_of_objects():
    assert read({"role": ["user", "assistant"], "content": ["Hi", "Hello"]}).messages == HELLO


def test_line_ends_of_messages_are_normalised_and_counted():
    seen = Seen()
    assert read(turns(("user", "a\r\nb\r\n"), ("assistant", "c\rd")), seen).messages[0]["content"] == "a\nb\n"
    assert seen.num_line_ends == 2


def test_arguments_keep_their_nulls_and_their_order():
    arguments = {"b": None, "a": {"x": 1, "y": None}}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    (found,) = read([HELLO[0], call]).messages[1]["tool_calls"]
    assert list(found["function"]["arguments"].items()) == list(arguments.items())


@pytest.mark.parametrize("tools", [[{"name": "f"}], json.dumps([{"name": "f"}]), [json.dumps({"name": "f"})]])
def test_tools_may_be_objects_or_json_text(tools):
    assert read(HELLO, tools=tools).tools == [{"name": "f"}]
    assert read(HELLO, tools=[]).tools is None


def test_a_prompt_and_its_completion_are_two_turns():
    conversation = as_conversation({"first": "Hi", "second": "Hello", "system": "s"}, "line 1")
    assert conversation.messages == [{"role": "system", "content": "s"}, *HELLO]
    assert conversation.answers == (2,)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "not JSON"),
        ([], "an empty list where its messages should be"),
        ([3], "a whole number where a message should be"),
        ([{"content": "x"}], "without a role"),
        ([{"role": "user"}], "'user' without content"),
        ([{"role": "user", "content": 5}], "a whole number as a message's content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "part of kind 'image_url'"),
        ([*HELLO[:1], {"role": "assistant", "content": "x", "weight": 0.5}], "weight=0.5"),
        (turns(("user", "x")), r"no assistant's answer \(its roles: user\)"),
        ([{"from": "function_call", "value": "f(x)"}], "'function_call' that is not JSON"),
    ],
)
def test_what_is_not_a_conversation_is_refused_with_its_place(messages, words):
    with pytest.raises(DataError, match=f"line 1.*{words}"):
        read(messages)
