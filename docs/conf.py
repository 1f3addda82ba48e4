"""Sphinx settings; scripts/docs builds with them and takes a warning for an error."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

from ftkit import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "ftkit"
author = "The ftkit authors"
project_copyright = "The ftkit authors"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "config_reference",
    "plan_table",
]
exclude_patterns = ["_build", "sweep", "newsgroups"]
nitpicky = False  # the types of torch and pydantic have no inventory here

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

html_theme = "furo"
html_extra_path = ["_build/extra"]  # scripts/docs makes it
html_title = f"ftkit {release}"


def literal(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn the `code` of our docstrings into the ``code`` of reStructuredText, in place."""
    lines[:] = [re.sub(r"(?<![`:])`([^`]+)`(?!`)", r"``\1``", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Read docstrings before napoleon does, which would cut `a: b` at its colon."""
    app.connect("autodoc-process-docstring", literal, priority=400)
