"""A directive that writes the tables of the configuration from the models that check it.

    ```{ftkit-config}
    ```

One table for each section of `RunConfig`: key, type, default, and what the field's own docstring says it does.

    ```{ftkit-rules}
    ```

The combinations that do not go together, from the rulebook itself.
"""

import typing
from datetime import date
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ftkit.config import rules, training
from ftkit.config import tree as config
from ftkit.config.methods import MethodSection, methods
from ftkit.config.tree import RunConfig

WORDS: dict[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "`true` or `false`",
    date: "date",
    NoneType: "none",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class ConfigReference(SphinxDirective):
    """Tables of every section, as MyST that Sphinx then reads."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        for file in (config.__file__, training.__file__):
            self.env.note_dependency(str(file))
        return self.parse_text_to_nodes(reference(), allow_section_headings=True)


class RuleTable(SphinxDirective):
    """The table of combinations that do not go together."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        self.env.note_dependency(str(rules.__file__))
        rows = [f"| {rule.what} | {rule.force.value} | {rule.reason} | {rule.remedy} |" for rule in rules.RULES]
        return self.parse_text_to_nodes(
            "\n".join(["| what | how far | because | instead |", "|---|---|---|---|", *rows])
        )


def reference() -> str:
    """Return the whole reference as MyST."""
    sections = {name: field for name, field in RunConfig.model_fields.items() if _is_section(field)}
    top = [
        row(name, name, field) for name, field in RunConfig.model_fields.items() if name not in ("method", *sections)
    ]
    parts = ["## The run", table(top)]
    for name, field in RunConfig.model_fields.items():
        if name == "method":
            parts += [method_part(tag, section) for tag, section in methods().items()]
        elif name in sections:
            parts.append(section_part(f"`{name}`", name, typing.cast("type[BaseModel]", field.annotation)))
    return "\n\n".join(parts)


def method_part(tag: str, section: type[MethodSection]) -> str:
    """Return the part of one choice of `method`, with the learning rate that comes with it."""
    rate = section.default_learning_rate
    return "\n\n".join(
        [section_part(f"`method.name: {tag}`", "method", section), f"Learning rate when none is named: `{rate:g}`."]
    )


def section_part(title: str, key: str, section: type[BaseModel]) -> str:
    """Return heading, sentence and table of one section.

    Args:
        title: the heading.
        key: what stands before each field's name.
        section: the model.

    Returns:
        MyST.
    """
    rows = [row(f"{key}.{name}", name, field) for name, field in section.model_fields.items() if field.description]
    sentence = (section.__doc__ or "").strip().splitlines()[0]
    return "\n\n".join([f"## {title}", sentence, *([table(rows)] if rows else [])])


def table(rows: list[str]) -> str:
    """Return a MyST table of rows."""
    return "\n".join(["| key | type | default | what it does |", "|---|---|---|---|", *rows])


def row(key: str, name: str, field: FieldInfo) -> str:
    """Return one field as the row of a table; `name` stands in where a field says nothing."""
    cells = [f"`{key}`", kind(field), default(field), field.description or name]
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"


def kind(field: FieldInfo) -> str:
    """Return a field's type in words, with its bounds."""
    bounds = [
        f"{sign} {getattr(limit, bound):g}"
        for limit in field.metadata
        for bound, sign in BOUNDS.items()
        if getattr(limit, bound, None) is not None
    ]
    return ", ".join([words(field.annotation), *bounds])


def words(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(words(argument) for argument in arguments)
    if origin is tuple:
        many = "list" if Ellipsis in arguments else {2: "pair"}.get(len(arguments), f"list of {len(arguments)}")
        return f"{many} of {words(arguments[0])}s"
    return WORDS.get(annotation, str(annotation))


def default(field: FieldInfo) -> str:
    """Return a field's default as YAML would have it."""
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(str(item) for item in value) + "]`"
    return f"`{value}`"


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directive."""
    app.add_directive("ftkit-config", ConfigReference)
    app.add_directive("ftkit-rules", RuleTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
