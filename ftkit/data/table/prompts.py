"""Prompts that are put together from several columns of a row.

A template is a text with columns in braces, cut into paragraphs by blank lines. A paragraph that names columns is left
out of a row in which they are all empty, with the blank line after it, so that an empty input leaves no trace:

    ### Instruction:            ### Instruction:
    {instruction}               Name a colour.

    ### Input:           ->     ### Response:
    {input}

    ### Response:
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftkit.errors import DataError, nearest

_BREAK = "\n\n"


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt over columns.

    Attributes:
        text: the template as it is written; `{{` and `}}` are braces.
        columns: the columns that it names, in order.
    """

    text: str
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, names: Sequence[str]) -> "PromptTemplate":
        """Read a template.

        Args:
            text: the template.
            names: the columns that there are.

        Returns:
            The template, whose columns are all in `names`.

        Raises:
            DataError: braces that do not close, a name that is not a column, or no column at all.
        """
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise DataError(
                f"data.prompt_template cannot be read ({error}); name columns in braces, and write {{{{ for a brace"
            ) from None
        columns = tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))
        for name in columns:
            if name not in names:
                raise DataError(f"data.prompt_template names {{{name}}}, which is not a column; {nearest(name, names)}")
        if not columns or any(spec or conversion for _, _, spec, conversion in parts):
            raise DataError(
                "data.prompt_template must name columns in braces and nothing else of Python's formats, such as "
                f"'{{{next(iter(names), 'text')}}}'; columns: {', '.join(names)}"
            )
        return cls(text, columns)

    def fill(self, row: Mapping[str, str]) -> str:
        """Return the prompt of a row.

        Args:
            row: column to text, empty where there is none.

        Returns:
            The paragraphs that have something to say, parted by blank lines; nothing where all columns are empty.
        """
        if not any(row[name].strip() for name in self.columns):
            return ""
        filled = (_paragraph(part, row) for part in self.text.split(_BREAK))
        return _BREAK.join(part for part in filled if part is not None)


def _paragraph(text: str, row: Mapping[str, str]) -> str | None:
    """Return a paragraph with its columns, None where all of them are empty."""
    parts = list(string.Formatter().parse(text))
    named = [name for _, name, _, _ in parts if name is not None]
    if named and not any(row[name].strip() for name in named):
        return None
    return "".join(literal + ("" if name is None else row[name]) for literal, name, _, _ in parts)


def headed(columns: Sequence[str], answer: str) -> str:
    """Return the template that sets each column below its own name, as Alpaca's and Dolly's does.

    Args:
        columns: the columns of the prompt.
        answer: the column of answers.

    Returns:
        Such as the example at the top of this file.
    """
    heading = "Answer" if answer.strip().lower().startswith("answer") else "Response"
    paragraphs = [f"### {_heading(name)}:\n{{{name}}}" for name in columns]
    return _BREAK.join([*paragraphs, f"### {heading}:\n"])


def joined(columns: Sequence[str]) -> str:
    """Return the template that parts columns by blank lines."""
    return _BREAK.join(f"{{{name}}}" for name in columns)


def _heading(name: str) -> str:
    return name.strip().replace("_", " ").capitalize()
