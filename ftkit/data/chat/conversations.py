"""The conversations of a dataset: read, written by the chat template, and what is worth telling of that."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ftkit.config.tree import DataConfig
from ftkit.data.chat.messages import ROLES, Seen, as_conversation, read_conversation
from ftkit.data.chat.template import ChatTemplate, Rendering
from ftkit.data.findings import Finding, note, warning
from ftkit.data.table.columns import Columns
from ftkit.data.table.rows import iterate_conversations
from ftkit.data.tokens.targets import Piece
from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.errors import DataError, ExcusableDataError
from ftkit.units import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def take_template(config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Give a tokenizer the chat template that the configuration names, which is then saved with it.

    Args:
        config: `chat_template` is a file, or None.
        tokenizer: of the model.

    Returns:
        Whether it has a template now.

    Raises:
        DataError: the file cannot be read.
    """
    if config.chat_template is not None:
        path = Path(config.chat_template).expanduser()
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"data.chat_template={config.chat_template!r} cannot be read ({error}); give a file of a Jinja template"
            ) from None
    return bool(tokenizer.chat_template)


@dataclass(frozen=True)
class Conversations:
    """The way from the rows of a dataset to pieces of text.

    Attributes:
        config: what carries loss, and whether a template may leave something out.
        columns: of chats, or of prompt and completion as a chat.
        tokenizer: the model's.
        seen: what is worth telling of what was read.
        rendering: what is worth telling of what was written.
    """

    config: DataConfig
    columns: Columns
    tokenizer: TextTokenizer
    seen: Seen = field(default_factory=Seen)
    rendering: Rendering = field(default_factory=Rendering)

    def pieces(self, rows: pa.Table) -> Iterator[list[Piece]]:
        """Write the rows of a split.

        Args:
            rows: `first`, `row` and what else there is.

        Yields:
            The pieces of each row.

        Raises:
            DataError: there is no template, a row that is not in any known form, or text that the template leaves out.
        """
        template = self._template
        problems: list[str] = []
        for place, row in iterate_conversations(rows):
            try:
                yield self._written(template, place, row)
            except DataError as error:
                problems.append(str(error))
                if len(problems) == _MOST_PROBLEMS:
                    break
        if problems:
            raise DataError(_told(problems))
        if self.rendering.omitted.num_conversations and self.config.template_omissions == "refuse":
            sentence = f"{self._omissions()}; {_OMISSIONS_CURE}"
            raise ExcusableDataError(sentence, {"template_omissions": "allow"})

    @property
    def _template(self) -> ChatTemplate:
        config = self.config
        return ChatTemplate(self.tokenizer.original, self.tokenizer.special, config.loss_on, config.chat_date)

    def _written(self, template: ChatTemplate, place: str, row: dict[str, Any]) -> list[Piece]:
        if self.columns.kind == "chat":
            conversation = read_conversation(row, place, self.seen, self.config.loss_on)
        else:
            conversation = as_conversation(row, place)
        if not self.tokenizer.original.chat_template:
            raise DataError(_NO_TEMPLATE)
        return template.pieces(conversation, place, self.rendering)

    def findings(self) -> list[Finding]:
        """Return what is worth telling of all splits."""
        seen, rendering = self.seen, self.rendering
        found = [warning(self._omissions())] if rendering.omitted.num_conversations else []
        found += rendering.marks.findings()
        for key, count in sorted(rendering.unread_keys.items()):
            say = note if key in _BOOKKEEPING else warning
            found.append(say(f"the chat template does not read the key {key!r} of {counted(count, 'message')}"))
        for key, count in sorted(seen.unused_loss_keys.items()):
            if count:
                messages = counted(
                    count, "message that is not the assistant's", "messages that are not the assistant's"
                )
                found.append(warning(f"{key!r} on {messages} is not used"))
        if self._template.asks_for_date and (self.columns.kind == "chat" or self.columns.as_chat):
            found.append(note(f"the chat template writes the date {self.config.chat_date}, as data.chat_date says"))
        if seen.num_trailing:
            found.append(note(f"left out: {counted(seen.num_trailing, 'message')} after a conversation's last answer"))
        if seen.num_openings:
            conversations = counted(seen.num_openings, "conversation opens", "conversations open")
            found.append(note(f"{conversations} with the assistant's turn, which is context"))
        for role, count in sorted(seen.roles.items()):
            if count:
                found.append(note(f"the role {role!r} of {counted(count, 'message')} is read as {ROLES[role]!r}"))
        return found

    def _omissions(self) -> str:
        return f"the chat template leaves out part of what is said: {self.rendering.omitted}"


def _told(problems: list[str]) -> str:
    """Return the problems of rows as one sentence: the first whole, and the number of others."""
    others = len(problems) - 1
    if not others or problems[0] == problems[1]:  # the same for all: there is no template
        return problems[0]
    least = "at least " if len(problems) == _MOST_PROBLEMS else ""
    rows = counted(others, "more row")
    return f"{problems[0]} ({least}{rows} cannot be used either, the next one: {problems[1]})"


_MOST_PROBLEMS = 100
_BOOKKEEPING = ("id", "name", "tool_call_id")
"""Keys that say which call a turn answers, or who speaks; most templates do without."""
_NO_TEMPLATE = (
    "the model's tokenizer has no chat template, so it is not known how it writes a conversation; choose a model that "
    "was trained to chat, give a template with --set data.chat_template=FILE, or give prompt and completion columns "
    "with --set data.prompt_format=plain"
)
_OMISSIONS_CURE = (
    "give a template that writes it with --set data.chat_template=FILE, correct the data, or train without it with "
    "--set data.template_omissions=allow"
)
