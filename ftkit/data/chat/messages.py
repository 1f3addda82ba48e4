"""Conversations as people write them, brought into the one form that chat templates take.

    written                                             what a template is given
    {"from": "human", "value": "Hi"}                    {"role": "user", "content": "Hi"}
    {"content": [{"type": "text", "text": "Hi"}]}       {"content": "Hi"}
    {"role": "assistant", "content": "5", "weight": 0}  {"role": "assistant", "content": "5"}, without loss
    {"from": "function_call", "value": "{...}"}         {"role": "assistant", "tool_calls": [...]}

Whatever else a message has (tool calls, reasoning, names) is given as it is written.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftkit.config.tree import LossOn
from ftkit.data.reading.values import kind_of
from ftkit.errors import DataError

Message = dict[str, Any]

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Roles of ShareGPT and its kin to those of chat templates; others stay as they are written."""

_LOSS_KEYS = ("weight", "train")
_SHAPE = "write a list of objects such as {'role': 'user', 'content': 'Hello'}"


@dataclass(frozen=True)
class Conversation:
    """A conversation in the form that chat templates take.

    Attributes:
        messages: objects of `role`, mostly `content`, and what else they were written with.
        answers: the places of the messages that carry loss, ascending.
        tools: schemas of the tools that may be called, or None.
    """

    messages: list[Message]
    answers: tuple[int, ...]
    tools: list[Any] | None = None


@dataclass
class Seen:
    """Counts of what was seen in conversations while they were read.

    Attributes:
        num_line_ends: carriage returns taken out before line feeds.
        num_openings: assistant's turns that open a conversation, which are context.
        num_trailing: messages after the last answer, which are left out.
        unused_loss_keys: `weight` and `train` of other roles' turns, to messages that have them.
        roles: roles that were renamed, to messages.
    """

    num_line_ends: int = 0
    num_openings: int = 0
    num_trailing: int = 0
    unused_loss_keys: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)


def read_conversation(row: Mapping[str, Any], where: str, seen: Seen, loss_on: LossOn) -> Conversation:
    """Bring a row's conversation into the form that chat templates take.

    Args:
        row: `first`, the messages (a list, or its JSON); maybe `second`, messages that answer them and carry the loss;
            maybe `system` and `tools`.
        where: where the row stands, for errors.
        seen: counts what is worth telling.
        loss_on: which of the assistant's turns carry loss.

    Returns:
        The conversation up to its last answer, whole where everything carries loss; the system message comes first.

    Raises:
        DataError: messages or tools that are not in any known form, named by their place.
    """
    tools = _read_tools(row.get("tools"), where)
    messages, weights = _read_messages(row["first"], where, seen)
    if row.get("second") is not None:
        said, answering = _read_messages(row["second"], where, seen)
        messages, weights = [*messages, *said], [*(weight or False for weight in weights), *answering]
    system = (row.get("system") or "").strip()
    if system and messages[0]["role"] != "system":
        messages, weights = [{"role": "system", "content": row["system"]}, *messages], [None, *weights]
    elif system and (messages[0].get("content") or "").strip() != system:
        raise DataError(
            f"{where} has a system message in its messages and another in a column of their own; remove one"
        )
    if loss_on == "everything":
        return Conversation(messages, (), tools)
    answers = _answers(messages, weights, where, seen)
    answers = answers[-1:] if loss_on == "last_answer" else answers
    last = answers[-1] + 1 if answers else len(messages)
    seen.num_trailing += len(messages) - last
    return Conversation(messages[:last], answers, tools)


def as_conversation(row: Mapping[str, Any], where: str) -> Conversation:
    """Return prompt and completion (`first`, `second`) as a chat of two turns, maybe after a system message."""
    system = [{"role": "system", "content": row["system"]}] if (row.get("system") or "").strip() else []
    turns = [{"role": "user", "content": row["first"]}, {"role": "assistant", "content": row["second"]}]
    return Conversation([*system, *turns], (len(system) + 1,), _read_tools(row.get("tools"), where))


def _read_messages(written: Any, where: str, seen: Seen) -> tuple[list[Message], list[bool | None]]:
    """Return messages, and for each whether it carries loss as far as it says so."""
    written = _parsed(written, where)
    if isinstance(written, dict) and written and all(isinstance(values, list) for values in written.values()):
        # `datasets` keeps a sequence of objects as an object of sequences.
        written = [dict(zip(written, values, strict=True)) for values in zip(*written.values(), strict=True)]
    if not isinstance(written, list) or not written:
        raise DataError(f"{where} has {_kind(written)} where its messages should be; {_SHAPE}")
    messages = [_read_message(entry, where, seen) for entry in written]
    return messages, [_loss(message, where, seen) for message in messages]


def _parsed(value: Any, where: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise DataError(f"{where} has messages or tools that are not JSON ({error}); {_SHAPE}") from None


def _read_message(written: Any, where: str, seen: Seen) -> Message:
    written = _parsed(written, where)  # `datasets` keeps lists of JSON values as texts
    if not isinstance(written, dict):
        raise DataError(f"{where} has {_kind(written)} where a message should be; {_SHAPE}")
    message = {key: value for key, value in written.items() if value is not None}
    role = message.pop("role", None) or message.pop("from", None)
    if not isinstance(role, str):
        raise DataError(f"{where} has a message without a role; give every message one, such as 'user'")
    if "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    content = _joined_parts(message.pop("content", None), where)
    if role == "function_call" and "tool_calls" not in message:
        return {"role": "assistant", "tool_calls": [_read_call(content, where)], **message}
    seen.roles[role] += role in ROLES
    if content is not None:
        seen.num_line_ends += content.count("\r\n")
        message = {"content": content.replace("\r\n", "\n"), **message}
    elif not any(message.get(key) for key in message if key not in _LOSS_KEYS):
        raise DataError(f"{where} has a message of {role!r} without content; give it one, or leave it out")
    return {"role": ROLES.get(role, role), **message}


def _joined_parts(content: Any, where: str) -> str | None:
    """Return a content as one text: parts of text are joined as they are."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{where} has {_kind(content)} as a message's content; write a text, or parts of text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str) or (isinstance(part, dict) and part.get("type", "text") != "text"):
            kind = part.get("type") if isinstance(part, dict) else _kind(part)
            raise DataError(
                f"{where} has a part of kind {kind!r} in a message's content; ftkit trains on text alone: leave "
                "out what is not {'type': 'text', 'text': ...}"
            )
        texts.append(text)
    return "".join(texts)


def _read_call(content: str | None, where: str) -> Any:
    """Return the call that ShareGPT writes as the text of a turn."""
    try:
        call = json.loads(content or "")
    except ValueError:
        call = None
    if not isinstance(call, dict) or "name" not in call:
        raise DataError(f"{where} has a turn of 'function_call' that is not JSON with a name and arguments; correct it")
    return {"type": "function", "function": call}


def _loss(message: Message, where: str, seen: Seen) -> bool | None:
    """Take `weight` and `train` out of a message; None where it has neither."""
    given = {key: message.pop(key) for key in _LOSS_KEYS if key in message}
    for key, value in given.items():
        if value not in (0, 1):
            raise DataError(f"{where} has {key}={value!r} on a message; a turn carries loss or does not: write 1 or 0")
        seen.unused_loss_keys[key] += message["role"] != "assistant" and bool(value)
    if not given or message["role"] != "assistant":
        return None
    return all(given.values())


def _answers(messages: list[Message], weights: list[bool | None], where: str, seen: Seen) -> tuple[int, ...]:
    """Return the assistant's turns that carry loss: not those of weight 0, nor one that nobody asked for."""
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not any(place > 0 or weights[place] for place in turns):
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{where} has no assistant's answer (its roles: {roles}), so there is nothing to learn from; call the role "
            "that answers 'assistant', or leave the row out"
        )
    seen.num_openings += 0 in turns and weights[0] is None
    return tuple(place for place in turns if (place > 0 if weights[place] is None else weights[place]))


def _read_tools(written: Any, where: str) -> list[Any] | None:
    tools = _parsed(written, where) if written else None
    if not tools:
        return None
    tools = [_parsed(tool, where) for tool in (tools if isinstance(tools, list) else [tools])]
    if not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{where} has tools that are not objects; write a list of JSON schemas")
    return tools


def _kind(value: Any) -> str:
    return "an empty list" if value == [] else kind_of(value)
