"""A conversation written by the tokenizer's chat template: its pieces, and which of them are answers."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from ftkit.config.tree import LossOn
from ftkit.data.chat.counted_texts import CountedTexts
from ftkit.data.chat.forms import as_parts, forms_of
from ftkit.data.chat.marks import MarksSeen, Signs, Span, has_marks, marks_of
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
        omitted: texts of messages and names of tools that it leaves out.
        marks: what it marks as generated.
        num_spelled: conversations that spell out a special token.
        unread_keys: keys of messages that it never reads, to messages that have them.
    """

    omitted: CountedTexts = field(default_factory=CountedTexts)
    marks: MarksSeen = field(default_factory=MarksSeen)
    num_spelled: int = 0
    unread_keys: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Written:
    """A conversation as a template writes it.

    Attributes:
        whole: its rendering.
        turns: the answers in it, or all of it where everything carries loss.
        marks: what the template marks of these answers; None where it marks nothing.
        missing: what it leaves out.
    """

    whole: str
    turns: Sequence[Span]
    marks: Sequence[Span] | None = None
    missing: Sequence[str] = ()

    def pieces(self) -> list[Piece]:
        """Return context and targets in turn."""
        return _cut(self.whole, self.turns if self.marks is None else self.marks)


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
        written = min(self._written(hidden, where), key=lambda written: sum(map(len, written.missing)))
        rendering.omitted.add(where, [self.special.shown(text) for text in written.missing])
        if written.marks is not None:
            rendering.marks.add(where, written.whole, written.turns, written.marks)
        rendering.unread_keys.update(unread_keys(messages, self.source(tools), written.whole))
        return [(self.special.as_tokenized(text), is_answer) for text, is_answer in written.pieces()]

    def _written(self, conversation: Conversation, where: str) -> Iterator[_Written]:
        """Yield what the template makes of each form of a conversation, until it leaves nothing out.

        Templates disagree on whether a content is a text or a list of parts, whether the arguments of a call are an
        object or its JSON, and whether a turn without content has an empty one.
        """
        problem: DataError | None = None
        is_written = False
        for messages in forms_of(conversation.messages):
            form = replace(conversation, messages=messages)
            try:
                written = self._in_form(form, where)
            except DataError as error:
                problem = problem or error
                continue
            is_written = True
            missing = left_out(form, _cut(written.whole, written.turns), self.special)
            yield replace(written, missing=missing)
            if not missing:
                return
        if problem is not None and not is_written:
            raise problem

    def _in_form(self, conversation: Conversation, where: str) -> _Written:
        def render(messages: Sequence[Message], *, is_prompt: bool = False) -> str:
            return self._render(replace(conversation, messages=list(messages)), where, is_prompt=is_prompt)

        whole = render(conversation.messages)
        if self.loss_on == "everything":
            return _Written(whole, [(0, len(whole))])
        found = [
            Answer(conversation.messages, place, whole, self.special).find(render) for place in conversation.answers
        ]
        turns = [span for span in found if span is not None]
        is_hidden = len(turns) < len(found) or any(one[1] > other[0] for one, other in pairwise(turns))
        marks = self._marks(conversation, where, whole)
        if is_hidden:
            turns = _marked_turns(conversation, marks)
        if len(turns) < len(found):
            raise DataError(_rewrites(where, self.loss_on))
        return _Written(whole, turns, marks_of(turns, marks) if marks is not None else None)

    def _marks(self, conversation: Conversation, where: str, whole: str) -> list[Span] | None:
        """Return what the template marks as generated, in order; None where it marks nothing."""
        if not has_marks(self.source(conversation.tools)):
            return None
        signs = Signs()
        rendered, marks = signs.read(self._render(conversation, where, is_prompt=False, signs=signs))
        return marks if rendered == whole else None  # a template that looks at what it has marked

    def _render(self, conversation: Conversation, where: str, *, is_prompt: bool, signs: Signs | None = None) -> str:
        from jinja2 import TemplateError

        if not conversation.messages:
            return ""
        source = self.source(conversation.tools)
        try:
            rendered = self.tokenizer.apply_chat_template(
                conversation.messages,
                tools=conversation.tools,
                tokenize=False,
                add_generation_prompt=is_prompt,
                chat_template=source if signs is None else signs.placed(source),
            )
            return str(rendered)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"{where}: the tokenizer's chat template refuses the messages ({error}); correct them, or give "
                "another template with --set data.chat_template=FILE"
            ) from None


def _cut(whole: str, spans: Sequence[Span]) -> list[Piece]:
    """Cut a rendering into context and targets in turn, context first and last."""
    borders = [0, *chain.from_iterable(spans), len(whole)]
    return [(whole[start:stop], place % 2 == 1) for place, (start, stop) in enumerate(pairwise(borders))]


def _marked_turns(conversation: Conversation, marks: Sequence[Span] | None) -> list[Span]:
    """Return the marks of the answers, where every turn of the assistant has one; else none."""
    turns = [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    if marks is None or len(marks) != len(turns):
        return []
    return [mark for place, mark in zip(turns, marks, strict=True) if place in conversation.answers]


def _rewrites(where: str, loss_on: LossOn) -> str:
    cure = "data.loss_on=last_answer, " if loss_on == "answers" else ""
    return (
        f"{where}: the chat template of this tokenizer rewrites earlier turns as later ones come, so the assistant's "
        f"part cannot be told apart; set {cure}data.loss_on=everything, or give a template that does not with "
        "data.chat_template"
    )


def wants_parts(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer's chat template shows a content alone that is a list of parts."""
    message: Message = {"role": "user", "content": "zebra"}
    return not _shows(tokenizer, message) and _shows(tokenizer, as_parts(message))


def _shows(tokenizer: "PreTrainedTokenizerBase", message: Message) -> bool:
    from jinja2 import TemplateError

    try:
        rendered = str(tokenizer.apply_chat_template([message], tokenize=False))
    except (TemplateError, TypeError, KeyError, ValueError):
        return False
    return "zebra" in rendered and not any(quoted in rendered for quoted in ("'zebra'", '"zebra"'))
