"""Special tokens that a text spells out stay characters; those that the chat template writes stay tokens.

A tokenizer takes `</s>` for its end token wherever it stands, and some do so even when told not to: the pieces of a
Unigram or WordPiece model hold the special tokens too. So ftkit tokenizes with a copy of the tokenizer in which every
special token has another name, a substitute that no text holds:

    the user wrote          a </s> b          the template rendered     <s>[INST] U2 [/INST] ok</s>
    the template is given   a U2 b            ftkit tokenizes           T1[INST] </s> [/INST] okT2

where U2, which carries the user's `</s>` through the template, and T1 and T2, for the template's own, are substitutes.
In the copy T2 is the end token, and `</s>` is four characters.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ftkit.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def chance() -> str:
    """Return 20 letters that no text holds; letters alone, so that no normalizer changes them."""
    return "".join(secrets.choice(string.ascii_lowercase) for _ in range(20))


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tokenizer, and their substitutes.

    Attributes:
        names: the special tokens as they are spelled. A single character is none: it is a piece of any text.
        are_characters: a special token in a text of the user is its characters; else it is that token.
        can_be_renamed: the tokenizer is a fast one, of which there can be a copy.
        user_mark: begins the substitutes that carry a user's special tokens through a template.
        template_mark: begins the substitutes of special tokens in the copy of the tokenizer.
    """

    names: tuple[str, ...]
    are_characters: bool
    can_be_renamed: bool = True
    user_mark: str = field(default_factory=chance)
    template_mark: str = field(default_factory=chance)

    def hide(self, value: Any) -> Any:
        """Return what the user wrote with substitutes for special tokens, in every text however deep.

        Raises:
            DataError: there are special tokens in it, and the tokenizer cannot tell them from the template's.
        """
        if not self.are_characters:
            return value
        return _mapped(value, lambda text: self._pattern.sub(self._substitute, text))

    def shown(self, rendered: str) -> str:
        """Return a rendered template as its reader would see it, the user's special tokens spelled out."""
        if self.user_mark not in rendered:
            return rendered
        for name, substitute in self._users.items():
            rendered = rendered.replace(substitute, name)
        return rendered

    def as_tokenized(self, rendered: str) -> str:
        """Return a rendered template for the copy of the tokenizer: its own special tokens have substitutes."""
        if not self.are_characters or not self.can_be_renamed:
            return rendered
        return self.shown(self._pattern.sub(lambda match: self._templates[match[0]], rendered))

    def without(self, rendered: str) -> str:
        """Return a rendered template with a line break for each of its special tokens."""
        return self._pattern.sub("\n", rendered)

    def ends(self, rendered: str) -> list[int]:
        """Return the characters after each special token of a rendered template, ascending."""
        return [match.end() for match in self._pattern.finditer(rendered)]

    def count(self, texts: Iterable[str]) -> int:
        """Return how many texts spell out a special token."""
        pattern = self._pattern
        return sum(pattern.search(text) is not None for text in texts)

    def renamed(self, tokenizer: "Tokenizer") -> "Tokenizer":
        """Return the copy of a fast tokenizer that ftkit tokenizes with.

        It neither cuts nor pads, and the characters of a token include the space before it.

        Args:
            tokenizer: of the `tokenizers` library.

        Returns:
            A copy with substitutes for special tokens, where they are to be characters.
        """
        tree = json.loads(tokenizer.to_str())
        tree["truncation"] = tree["padding"] = None
        _keep_spaces(tree.get("post_processor"))
        if self.are_characters:
            _rename(tree, self._templates)
        return type(tokenizer).from_str(json.dumps(tree))

    def _substitute(self, match: re.Match[str]) -> str:
        if not self.can_be_renamed:
            raise DataError(
                f"a message spells out the special token {match[0]!r}, and this tokenizer has no fast form "
                "(tokenizer.json) that could tell it from the chat template's; leave it out, or read it as a token "
                "with --set data.special_tokens_in_text=tokens"
            )
        return self._users[match[0]]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.names, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def _users(self) -> dict[str, str]:
        return {name: f"{self.user_mark}{_letters(place)}" for place, name in enumerate(self.names)}

    @cached_property
    def _templates(self) -> dict[str, str]:
        return {name: f"{self.template_mark}{_letters(place)}" for place, name in enumerate(self.names)}


def _letters(number: int) -> str:
    """Return a number as four letters."""
    return "".join(chr(ord("a") + number // 26**power % 26) for power in (3, 2, 1, 0))


def special_names(tokenizer: Any) -> tuple[str, ...]:
    """Return how a transformers tokenizer's special tokens are spelled, in the order of their numbers."""
    added = tokenizer.added_tokens_decoder
    names = [added[number].content for number in sorted(added) if added[number].special]
    return tuple(name for name in dict.fromkeys([*names, *tokenizer.all_special_tokens]) if len(name) > 1)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return value


def _keep_spaces(node: Any) -> None:
    """Turn off `trim_offsets`: a token that is nothing but a space would have no characters."""
    if isinstance(node, dict):
        if "trim_offsets" in node:
            node["trim_offsets"] = False
        for inner in node.values():
            _keep_spaces(inner)
    elif isinstance(node, list):
        for inner in node:
            _keep_spaces(inner)


def _rename(tree: dict[str, Any], names: dict[str, str]) -> None:
    """Rename special tokens in a tokenizer's JSON: among the added tokens, and among the pieces of the model."""
    for token in tree["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = tree["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]


def _makes(merge: list[str] | str, names: dict[str, str]) -> bool:
    """Tell whether a merge makes or takes a special token, which a text of plain characters never does."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first in names or second in names or first + second in names
