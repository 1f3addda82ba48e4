"""The forms in which chat templates want contents, calls of tools, and turns without content.

    as an object     {"name": "weather", "arguments": {"city": "Oslo"}}
    as JSON          {"name": "weather", "arguments": '{"city": "Oslo"}'}
    without content  {"role": "assistant", "tool_calls": [...]}
    with an empty    {"role": "assistant", "content": "", "tool_calls": [...]}
    as a text        {"role": "user", "content": "Hi"}
    as parts         {"role": "user", "content": [{"type": "text", "text": "Hi"}]}

A template that writes `arguments | tojson` wants the first, and one that adds them to a text the second; templates of
models that see pictures want parts.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from ftkit.data.chat.messages import Message


def forms_of(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield messages with contents as texts and arguments as objects, then in the other forms.

    Args:
        messages: of one conversation.

    Yields:
        Two forms where there are no calls, and every turn has a content.
    """
    has_calls = any(message.get("tool_calls") for message in messages)
    is_silent = any("content" not in message for message in messages)
    calls, contents = (False, True) if has_calls else (False,), (None, "") if is_silent else (None,)
    for in_parts, as_text, content in product((False, True), calls, contents):
        formed = [_with_calls(message, content, as_text=as_text) for message in messages]
        yield [as_parts(message) for message in formed] if in_parts else formed


def as_parts(message: Message) -> Message:
    """Return a message whose content, if it has one, is a list of one part."""
    if not isinstance(message.get("content"), str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def content_of(message: Message) -> str | None:
    """Return the content of a message of any form as a text, or None."""
    content = message.get("content")
    return "".join(part["text"] for part in content) if isinstance(content, list) else content


def with_content(message: Message, text: str) -> Message:
    """Return a message with another content, in the form that it has."""
    other = {**message, "content": text}
    return as_parts(other) if isinstance(message.get("content"), list) else other


def _with_calls(message: Message, content: str | None, *, as_text: bool) -> Message:
    if content is not None and "content" not in message:
        message = {**message, "content": content}
    if not isinstance(message.get("tool_calls"), list):
        return message
    return {**message, "tool_calls": [_with_arguments(call, as_text=as_text) for call in message["tool_calls"]]}


def _with_arguments(call: Any, *, as_text: bool) -> Any:
    """Return a call whose arguments are an object, or the JSON of one; what is neither stays as it is."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_arguments(call["function"], as_text=as_text)}
    arguments = call.get("arguments")
    if isinstance(arguments, str) and not as_text:
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return call
        return {**call, "arguments": arguments} if isinstance(arguments, dict) else call
    if isinstance(arguments, dict) and as_text:
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return call
