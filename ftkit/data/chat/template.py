"""A conversation written by the tokenizer's chat template: its pieces, and which of them are answers."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any

from ftkit.config.tree import LossOn
from ftkit.data.chat.forms import forms_of
from ftkit.data.chat.messages import Conversation, Message
from ftkit.data.chat.rendered import left_out, unread_keys
from ftkit.data.chat.turns import Answer
from ftkit.data.tokens.special import SpecialTokens
from ftkit.data.tokens.targets import Piece
from ftkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DATE = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


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
        today: the date that a template is given which asks for today's.
    """

    tokenizer: "PreTrainedTokenizerBase"
    special: SpecialTokens
    loss_on: LossOn
    today: date = date.min

    @property
    def asks_for_date(self) -> bool:
        """Whether the template writes today's date."""
        return "strftime_now" in str(self.tokenizer.chat_template)

    def source(self, tools: list[Any] | None) -> str:
        """Return the template, which may be another one where there are tools, with `today` for today's date."""
        written = str(self.tokenizer.get_chat_template(tools=tools))
        return _DATE.sub(lambda match: repr(self.today.strftime(match[2])), written)

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
        rendered = "".join(text for text, _ in pieces)
        rendering.unread_keys.update(unread_keys(messages, self.source(tools), rendered))
        return [(self.special.as_tokenized(text), is_answer) for text, is_answer in pieces]

    def _written(self, conversation: Conversation, where: str) -> Iterator[tuple[list[Piece], list[str]]]:
        """Yield pieces and what they leave out, for each form of a conversation, until nothing is left out.

        Templates disagree on whether the arguments of a call are an object or its JSON, and on whether a turn without
        content has an empty one.
        """
        problem: DataError | None = None
        is_written = False
        for messages in forms_of(conversation.messages):
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
        def render(messages: Sequence[Message], *, is_prompt: bool = False) -> str:
            return self._render(replace(conversation, messages=list(messages)), where, is_prompt=is_prompt)

        whole = render(conversation.messages)
        if self.loss_on == "everything":
            return [(whole, True)]
        pieces: list[Piece] = []
        done = 0
        for place in conversation.answers:
            span = Answer(conversation.messages, place, whole, self.special).find(render)
            if span is None or span[0] < done:
                raise DataError(_rewrites(where, self.loss_on))
            pieces += [(whole[done : span[0]], False), (whole[slice(*span)], True)]
            done = span[1]
        return [*pieces, (whole[done:], False)]

    def _render(self, conversation: Conversation, where: str, *, is_prompt: bool) -> str:
        from jinja2 import TemplateError

        if not conversation.messages:
            return ""
        try:
            rendered = self.tokenizer.apply_chat_template(
                conversation.messages,
                tools=conversation.tools,
                tokenize=False,
                add_generation_prompt=is_prompt,
                chat_template=self.source(conversation.tools),
            )
            return str(rendered)
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
