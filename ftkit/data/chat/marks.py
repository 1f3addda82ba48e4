"""The parts of a conversation that its chat template marks as the assistant's own, with `{% generation %}`.

    {% generation %}{{ message.content }}<|im_end|>{% endgeneration %}

Such marks say what carries loss, and are checked against the turns that `turns.py` finds: what a mark leaves out of an
answer, or has beyond it, is counted. The marks are found by rendering the template with a filter in the place of the
block, which writes a sign before and behind what the block holds:

    {% filter replace('', 'BEGIN', 1) | reverse | replace('', 'DNE', 1) | reverse %}...{% endfilter %}

A filter takes white space off around it as any block does, so that without the signs the text is the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ftkit.data.chat.counted_texts import CountedTexts
from ftkit.data.findings import Finding, note, warning
from ftkit.data.tokens.special import chance

Span = tuple[int, int]
"""The first character of a part of a text, and the one after its last."""

_BEGIN = re.compile(r"{%([-+]?)\s*generation\s*([-+]?)%}")
_END = re.compile(r"{%([-+]?)\s*endgeneration\s*([-+]?)%}")


def has_marks(template: str) -> bool:
    """Whether a template marks what the assistant says."""
    return _BEGIN.search(template) is not None


@dataclass(frozen=True)
class Signs:
    """The signs that stand around a marked part while marks are looked for: letters that no text holds."""

    begin: str = field(default_factory=chance)
    end: str = field(default_factory=chance)

    def placed(self, template: str) -> str:
        """Return a template that writes the signs in the place of its marks."""
        behind = f"replace('', '{self.begin}', 1) | reverse | replace('', '{self.end[::-1]}', 1) | reverse"
        template = _BEGIN.sub(lambda tag: f"{{%{tag[1]} filter {behind} {tag[2]}%}}", template)
        return _END.sub(lambda tag: f"{{%{tag[1]} endfilter {tag[2]}%}}", template)

    def read(self, rendered: str) -> tuple[str, list[Span]]:
        """Return a rendered conversation without the signs, and the parts that were marked."""
        parts = re.split(f"({self.begin}|{self.end})", rendered)
        text, spans, begun = "", list[Span](), 0
        for part in parts:
            if part == self.begin:
                begun = len(text)
            elif part == self.end:
                spans.append((begun, len(text)))
            else:
                text += part
        return text, spans


@dataclass
class MarksSeen:
    """Counts of what marks did that is worth telling.

    Attributes:
        num_conversations: conversations whose targets are what their template marks.
        left_out: characters of answers that are not marked.
        beyond: characters that are marked and belong to no answer.
    """

    num_conversations: int = 0
    left_out: CountedTexts = field(default_factory=CountedTexts)
    beyond: CountedTexts = field(default_factory=CountedTexts)

    def add(self, where: str, whole: str, turns: Sequence[Span], marks: Sequence[Span]) -> None:
        """Count the differences between the answers of a conversation and its marks.

        Args:
            where: where it stands.
            whole: its rendering.
            turns: its answers, as `turns.py` finds them.
            marks: what is marked of them.
        """
        self.num_conversations += 1
        self.left_out.add(where, _texts(whole, _without(turns, marks)))
        self.beyond.add(where, _texts(whole, _without(marks, turns)))

    def findings(self) -> list[Finding]:
        """Return what is worth telling of marks."""
        if not self.num_conversations:
            return []
        found = [note("what carries loss is what the chat template marks with {% generation %}")]
        told = {"leave out what answers say, so it is not learned": self.left_out}
        told |= {"hold more than the answers, and it is learned": self.beyond}
        for words, counted in told.items():
            if counted.num_conversations:
                cure = "give another template with --set data.chat_template=FILE where that is not meant"
                found.append(warning(f"the template's marks {words}: {counted}", cure))
        return found


def marks_of(turns: Sequence[Span], marks: Sequence[Span]) -> list[Span]:
    """Return the marks that share characters with one of the turns."""
    return [mark for mark in marks if any(max(mark[0], turn[0]) < min(mark[1], turn[1]) for turn in turns)]


def _without(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """Return what is left of ascending spans without the characters of others, ascending too."""
    left = []
    for start, stop in spans:
        for begin, end in others:
            if end > start and begin < stop:
                left.append((start, begin))
                start = max(start, end)
        left.append((start, stop))
    return left


def _texts(whole: str, spans: Sequence[Span]) -> list[str]:
    return [whole[slice(*span)] for span in spans if whole[slice(*span)].strip()]
