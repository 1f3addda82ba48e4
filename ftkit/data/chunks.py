"""Items a few thousand at a time, so that what is made of them is never held whole."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_ITEMS = 2_000
_CHARACTERS = 2**21  # the library that tokenizes keeps some hundred bytes for each token of a batch


def chunks(
    items: Iterable[T], size: Callable[[T], int], most_items: int = _ITEMS, most_characters: int = _CHARACTERS
) -> Iterator[list[T]]:
    """Yield items some at a time, fewer where they are long.

    Args:
        items: texts, or what holds texts.
        size: the characters of one.
        most_items: that are yielded together.
        most_characters: after which no item is added.

    Yields:
        At least one item each.
    """
    held: list[T] = []
    characters = 0
    for item in items:
        held.append(item)
        characters += size(item)
        if len(held) >= most_items or characters >= most_characters:
            yield held
            held, characters = [], 0
    if held:
        yield held
