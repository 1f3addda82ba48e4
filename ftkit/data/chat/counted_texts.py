"""Count what a chat template makes of conversations, with the first of them as an example."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftkit.units import counted


@dataclass
class CountedTexts:
    """Texts of one sort, counted by conversation.

    Attributes:
        num_conversations: conversations that have any.
        num_characters: of all texts.
        first_place: where the first of these conversations stands.
        example: the first text there.
    """

    num_conversations: int = 0
    num_characters: int = 0
    first_place: str = ""
    example: str = ""

    def add(self, place: str, texts: Sequence[str]) -> None:
        """Count the texts of a conversation; a conversation without any does not count."""
        if not texts:
            return
        if not self.num_conversations:
            self.first_place, self.example = place, " ".join(texts[0].split())[:60]
        self.num_conversations += 1
        self.num_characters += sum(map(len, texts))

    def __str__(self) -> str:
        """Return the counts and the example in words."""
        return (
            f"{counted(self.num_characters, 'character')} of "
            f"{counted(self.num_conversations, 'conversation')}, first in "
            f"{self.first_place}: {self.example!r}"
        )
