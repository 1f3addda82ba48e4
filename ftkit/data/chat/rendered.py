"""Whether a chat template shows what messages say: every text must be found in what it rendered.

White space is not compared, since templates trim and part texts in their own ways, and a text may stand in JSON.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from ftkit.data.chat.forms import content_of
from ftkit.data.chat.messages import Conversation, Message
from ftkit.data.tokens.special import SpecialTokens
from ftkit.data.tokens.targets import Piece

_SAID = ("reasoning_content", "reasoning", "thinking")
_TELLING = 8
"""Letters that are not in a template by chance."""
_KNOWN = {"role", "content", "tool_calls"}


def left_out(conversation: Conversation, pieces: Sequence[Piece], special: SpecialTokens) -> list[str]:
    """Return the texts of a conversation that its rendering does not show.

    What an answer says must stand in the answer, or in what prompts for it; what comes before it, before it.

    Args:
        conversation: as it was given to the template.
        pieces: what the template made of it, context and answers in turn.
        special: tells the template's own tokens, which are not what a message says.

    Returns:
        The texts, or the parts of them, that are missing.
    """
    whole = _squeezed(special.without("".join(text for text, _ in pieces)))
    missing = [name for name in _tool_names(conversation.tools) if _squeezed(name) not in whole]
    rendered = "".join(text for text, _ in pieces)
    missing += [*_python_arguments(conversation.messages, rendered), *_printed_parts(conversation.messages, rendered)]
    for messages, answer, shown in _parts(conversation, pieces):
        context, answered = (_squeezed(special.without(text)) for text in shown)
        part = _Part(context + answered)
        for message in messages:
            missing += part.take(_said(message), (0, len(context)))
        missing += part.take(_said(answer), (len(context), len(context) + len(answered)))
    return [text for text in missing if text]


class _Part:
    """A context with the answer to it, in which the texts of messages are looked for, one message after the other.

    Each text takes its characters, so that what stands there once is not found twice.
    """

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._place = 0

    def take(self, texts: Sequence[str], span: tuple[int, int]) -> list[str]:
        """Find the texts of one message in any order; return what is missing of them.

        Args:
            texts: what the message says.
            span: where it should stand. It is looked for behind earlier messages, there and then elsewhere in the span;
                at last behind earlier messages before the span, where the prompt for an answer says how it begins.
        """
        missing, behind = [], self._place
        for text in texts:
            found = self._find(text, (max(behind, span[0]), span[0], behind), span[1])
            if found is None:
                missing.append(_rest(text, self._shown[slice(*span)]))
                continue
            self._shown = self._shown[: found[0]] + "\0" * (found[1] - found[0]) + self._shown[found[1] :]
            self._place = max(self._place, found[1])
        return missing

    def _find(self, text: str, starts: Sequence[int], stop: int) -> tuple[int, int] | None:
        """Find a text, plain or as JSON writes it, from one of several places on."""
        forms = [_squeezed(form) for form in (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1])]
        for start in dict.fromkeys(starts):
            for form in forms:
                if (found := self._shown.find(form, start, stop)) >= 0:
                    return found, found + len(form)
        return None


def unread_keys(messages: Sequence[Message], source: str, rendered: str) -> Counter[str]:
    """Count the keys of messages that a template never reads.

    Args:
        messages: as they were given to the template.
        source: the template.
        rendered: what it made of them; a template that writes whole messages reads keys that it does not name.

    Returns:
        Key to messages that have it.
    """
    others = Counter(key for message in messages for key in message if key not in _KNOWN)
    return Counter(
        {
            key: count
            for key, count in others.items()
            if not re.search(rf"\b{re.escape(key)}\b", source)
            and not all(str(message[key]) in rendered for message in messages if key in message)
        }
    )


def _parts(
    conversation: Conversation, pieces: Sequence[Piece]
) -> Iterator[tuple[Sequence[Message], Message, tuple[str, str]]]:
    """Yield messages, the answer to them, and the pieces that must show both."""
    done = 0
    for number, place in enumerate(conversation.answers):
        rendered = pieces[2 * number][0], pieces[2 * number + 1][0]
        yield conversation.messages[done:place], conversation.messages[place], rendered
        done = place + 1
    if not conversation.answers:
        yield conversation.messages, {}, ("".join(text for text, _ in pieces), "")


def _said(message: Message) -> list[str]:
    """Return what a message says, the longest first: reasoning, content, the names and arguments of its calls."""
    said = [message[key] for key in _SAID if isinstance(message.get(key), str)]
    said += [content_of(message) or ""]
    for call in _calls(message):
        said += _leaves([call.get("name"), call.get("arguments")])
    return sorted(said, key=len, reverse=True)


def _calls(message: Message) -> Iterator[dict[str, Any]]:
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield function


def _python_arguments(messages: Sequence[Message], rendered: str) -> Iterator[str]:
    """Yield the arguments that a template writes as Python prints them, with single quotes, instead of as JSON."""
    for call in (call for message in messages for call in _calls(message)):
        arguments = call.get("arguments")
        if arguments and not isinstance(arguments, str) and str(arguments) in rendered:
            text = json.dumps(arguments, ensure_ascii=False)
            if text not in rendered:
                yield text


def _printed_parts(messages: Sequence[Message], rendered: str) -> Iterator[str]:
    """Yield the parts of contents that a template writes with all that is around their texts."""
    lists = (message["content"] for message in messages if isinstance(message.get("content"), list))
    for part in chain.from_iterable(lists):
        if str(part) in rendered or json.dumps(part) in rendered or json.dumps(part, ensure_ascii=False) in rendered:
            yield str(part)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _tool_names(tools: Sequence[Any] | None) -> Iterator[str]:
    for tool in tools or []:
        inner = tool.get("function", tool)
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            yield inner["name"]


def _rest(text: str, shown: str) -> str:
    """Return a text without the beginning and the end that are shown."""
    letters = [place for place, sign in enumerate(text) if not sign.isspace()]
    squeezed = "".join(text[place] for place in letters)
    bare = shown.strip("\0")
    if bare and squeezed.endswith(bare):  # an answer of which the end alone is shown
        begin, end = 0, len(bare)
    else:
        begin = _longest(squeezed, shown, is_end=False)
        end = _longest(squeezed[begin:], shown, is_end=True)
    missing = letters[begin : len(letters) - end]
    return text[missing[0] : missing[-1] + 1] if missing else ""


def _longest(text: str, shown: str, *, is_end: bool) -> int:
    """Return how long the longest beginning or end of a text is that is shown, by halving; 0 for a few letters."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        part = text[len(text) - middle :] if is_end else text[:middle]
        low, high = (middle, high) if part in shown else (low, middle - 1)
    return low if low >= _TELLING else 0


def _squeezed(text: str) -> str:
    return "".join(text.split())
