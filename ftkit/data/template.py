"""A conversation written by the tokenizer's chat template: its pieces, and which of them are answers.

Where an answer begins and ends is seen by rendering the conversation up to it, once with the prompt for an answer and
once with the answer: the second must begin with the first, and the whole conversation with the second.

    messages[:1] and the prompt   <user>Hi</user><assistant>
    messages[:2]                  <user>Hi</user><assistant>Hello</assistant>
    the answer                                              Hello</assistant>
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ftkit.config.tree import LossOn
from ftkit.data.chat import Conversation, Message
from ftkit.data.rendered import left_out, unread_keys
from ftkit.data.special import SpecialTokens
from ftkit.data.targets import Piece
from ftkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Rendering:
    """Counts of what a template did to conversations that is worth reporting.

    Attributes:
        num_omitting: conversations of which it leaves something out.
        num_omitted: characters of messages and names of tools that it leaves out.
        first_place: where the first of them stands.
        example: what is left out there.
        num_spelled: conversations that spell out a special token.
        unread_keys: keys of messages that it never reads, to messages that have them.
    """

    num_omitting: int = 0
    num_omitted: int = 0
    first_place: str = ""
    example: str = ""
    num_spelled: int = 0
    unread_keys: Counter[str] = field(default_factory=Counter)

    def omit(self, place: str, texts: Sequence[str]) -> None:
        """Count the texts that a template leaves out of a conversation."""
        if not texts:
            return
        if not self.num_omitting:
            self.first_place, self.example = place, " ".join(texts[0].split())[:60]
        self.num_omitting += 1
        self.num_omitted += sum(map(len, texts))


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        tokenizer: it has a template.
        special: its special tokens, and whether those that a message spells out are characters.
        loss_on: what carries loss.
    """

    tokenizer: "PreTrainedTokenizerBase"
    special: SpecialTokens
    loss_on: LossOn

    def pieces(self, conversation: Conversation, where: str, rendering: Rendering) -> list[Piece]:
        """Write a conversation.

        Args:
            conversation: up to its last answer.
            where: where it stands, for errors.
            rendering: counts what is worth telling.

        Returns:
            Its pieces, in the form that `mark_targets` wants.

        Raises:
            DataError: the template refuses the messages, or rewrites earlier turns as later ones come.
        """
        messages, tools = self.special.hide(conversation.messages), self.special.hide(conversation.tools)
        rendering.num_spelled += (messages, tools) != (conversation.messages, conversation.tools)
        hidden = Conversation(messages, () if self.loss_on == "everything" else conversation.answers, tools)
        pieces, missing = min(self._written(hidden, where), key=lambda written: sum(map(len, written[1])))
        rendering.omit(where, [self.special.shown(text) for text in missing])
        source = str(self.tokenizer.get_chat_template(tools=tools))
        rendering.unread_keys.update(unread_keys(messages, source, "".join(text for text, _ in pieces)))
        return [(self.special.as_tokenized(text), is_answer) for text, is_answer in pieces]

    def _written(self, conversation: Conversation, where: str) -> Iterator[tuple[list[Piece], list[str]]]:
        """Yield pieces and what they leave out, for each form of a conversation, until nothing is left out.

        Templates disagree on whether the arguments of a call are an object or its JSON, and on whether a turn without
        content has an empty one.
        """
        problem: DataError | None = None
        is_written = False
        for messages in _forms_of_calls(conversation.messages):
            form = replace(conversation, messages=messages)
            try:
                pieces = self._pieces(form, where)
            except DataError as error:
                problem = problem or error
                continue
            is_written, missing = True, left_out(form, pieces, self.special)
            yield pieces, missing
            if not missing:
                return
        if problem is not None and not is_written:
            raise problem

    def _pieces(self, conversation: Conversation, where: str) -> list[Piece]:
        messages = conversation.messages
        if self.loss_on == "everything":
            return [(self._render(conversation, len(messages), where), True)]
        pieces: list[Piece] = []
        done = rest = ""
        for place in conversation.answers:
            after = self._render(conversation, place + 1, where)
            begin = self._begin_of_answer(conversation, place, after, where)
            if begin is None or not after.startswith(done) or begin < len(done):
                raise DataError(_rewrites(where, self.loss_on))
            stop = len(after) - self._after_end(after[begin:])
            pieces += [(after[len(done) : begin], False), (after[begin:stop], True)]
            done, rest = after[:stop], after[stop:]
        if not conversation.answers:
            rest = self._render(conversation, len(messages), where)
        return [*pieces, (rest, False)]

    def _begin_of_answer(self, conversation: Conversation, place: int, after: str, where: str) -> int | None:
        """Return the first character of an answer: where the rendering leaves the one that prompts for it."""
        prompt = self._render(conversation, place, where, is_prompt=True)
        if after.startswith(prompt):
            return len(prompt)
        # The prompt says more than an answer begins with, such as <think> before an answer without reasoning.
        before = self._render(conversation, place, where)
        if not (after.startswith(before) and prompt.startswith(before)):
            return None
        same = (one == other for one, other in zip(after, prompt, strict=False))
        return next((number for number, is_same in enumerate(same) if not is_same), min(len(after), len(prompt)))

    def _after_end(self, answer: str) -> int:
        """Return the white space after the special token that ends an answer, in characters: it is never generated."""
        ending = answer.rstrip()
        is_ended = any(ending.endswith(name) for name in self.special.names)
        return len(answer) - len(ending) if is_ended else 0

    def _render(self, conversation: Conversation, stop: int, where: str, *, is_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        if not stop:
            return ""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    conversation.messages[:stop],
                    tools=conversation.tools,
                    tokenize=False,
                    add_generation_prompt=is_prompt,
                )
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"{where}: the tokenizer's chat template refuses the messages ({error}); correct them, or give "
                "another template with data.chat_template"
            ) from None


def _rewrites(where: str, loss_on: LossOn) -> str:
    cure = "data.loss_on=last_answer, " if loss_on == "answers" else ""
    return (
        f"{where}: the chat template of this tokenizer rewrites earlier turns as later ones come, so the assistant's "
        f"part cannot be told apart; set {cure}data.loss_on=everything, or give a template that does not with "
        "data.chat_template"
    )


def _forms_of_calls(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield messages as they are written with arguments as objects, then in the other forms that templates want."""
    has_calls = any(message.get("tool_calls") for message in messages)
    is_silent = any("content" not in message for message in messages)
    for as_text in (False, True) if has_calls else (False,):
        for content in (None, "") if is_silent else (None,):
            yield [_with_calls(message, content, as_text=as_text) for message in messages]


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
