"""Fill the templates of pages: documents that ask the network for nothing and whose texts are all escaped."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_FOLDER = Path(__file__).parent


def fill_page(name: str, **values: Any) -> str:
    """Return a page as HTML.

    Args:
        name: of the template, without its ending.
        values: by the names that the template has for them; `made`, the time of now, and `style` are added.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(f"{name}.html.jinja").render(values, made=made, style=page_file("page.css"))


def page_file(name: str) -> str:
    """Return a style or a script that pages hold."""
    return (_FOLDER / name).read_text(encoding="utf-8")
