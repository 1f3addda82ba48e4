"""Where an answer begins and ends in a rendered conversation.

It is seen by rendering the conversation up to the answer, once with the prompt for it and once with the answer itself:

    messages[:1] and the prompt   <user>Hi</user><assistant>
    messages[:2]                  <user>Hi</user><assistant>Hello</assistant>
    the answer                                              Hello</assistant>

Some templates write the last turn in another way than earlier ones: Qwen3's begins with an empty <think>, Phi-3's ends
with one more end token. Then the second rendering does not begin the whole conversation, and the end of an earlier
answer is found by what stays the same when its words are changed:

    the whole               <user>Hi</user><assistant>Hello</assistant><user>Bye</user><assistant><think></think>Ciao
    with other words        <user>Hi</user><assistant>zebra</assistant><user>Bye</user><assistant><think></think>Ciao
    the same from here on                                  </assistant><user>Bye...
    the answer as the last  <user>Hi</user><assistant><think></think>Hello</assistant>
    its end                                                               </assistant>
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.data.chat.forms import content_of, with_content
from ftkit.data.chat.messages import Message
from ftkit.data.tokens.special import SpecialTokens
from ftkit.errors import DataError

Render = Callable[..., str]
"""Messages, and `is_prompt`, to what the template makes of them."""


@dataclass(frozen=True)
class Answer:
    """An assistant's turn in a rendered conversation.

    Attributes:
        messages: of the whole conversation.
        place: of the turn among them.
        whole: the rendering of all messages.
        special: the tokens that may end a turn.
    """

    messages: Sequence[Message]
    place: int
    whole: str
    special: SpecialTokens

    def find(self, render: Render) -> tuple[int, int] | None:
        """Return the answer's first character and the one after its end; None where the template hides them.

        White space after the token that ends the turn is not a part of it: it is never generated.
        """
        begin = self._begin(render)
        if begin is None:
            return None
        after = render(self.messages[: self.place + 1])
        if not self.whole.startswith(after):
            return self._within(begin, self._end_inside(begin, after, render))
        ending = after.rstrip()
        is_ended = any(ending.endswith(name) for name in self.special.names)
        return self._within(begin, len(ending) if is_ended else len(after))

    def _within(self, begin: int, end: int | None) -> tuple[int, int] | None:
        return None if end is None or end < begin else (begin, end)

    def _begin(self, render: Render) -> int | None:
        before = self.messages[: self.place]
        prompt = render(before, is_prompt=True)
        if self.whole.startswith(prompt):
            return len(prompt)
        # The prompt says more than this answer begins with, such as <think> before an answer without reasoning.
        bare = render(before)
        if not (self.whole.startswith(bare) and prompt.startswith(bare)):
            return None
        return _num_shared(self.whole, prompt)

    def _end_inside(self, begin: int, after: str, render: Render) -> int | None:
        """Return the end of an answer that is written in another way when it is the last."""
        changed = [*self.messages]
        changed[self.place] = _with_other_words(changed[self.place])
        try:
            words_end = len(self.whole) - _num_shared_at_end(self.whole, render(changed))
            ending = after[len(after) - _num_shared_at_end(after, render(changed[: self.place + 1])) :]
        except DataError:  # a template that checks what a call says
            return None
        following = self.whole[words_end:]
        shared = following[: _num_shared(ending, following)]
        # The first token of the next turn may begin as the ending goes on, so that the shared part ends inside it.
        ends = self.special.ends(shared) or self.special.ends(following)[:1]
        return words_end + ends[-1] if ends and words_end >= begin else None


def _with_other_words(message: Message) -> Message:
    """Return a turn that says something else, with another last letter."""
    said = content_of(message)
    words = "quick" if (said or "").rstrip().endswith("a") else "zebra"
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return with_content(message, words)
    other = with_content(message, words) if said else message
    return {**other, "tool_calls": [_other_call(call, words) for call in calls]}


def _other_call(call: Any, words: str) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _other_call(call["function"], words)}
    return {**call, "arguments": {words: words} if isinstance(call.get("arguments"), dict) else words}


def _num_shared(one: str, other: str) -> int:
    """Return how many characters two texts share at their beginnings, by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _num_shared_at_end(one: str, other: str) -> int:
    return _num_shared(one[::-1], other[::-1])
