"""Values that name something: a file, a folder, a model, a column. An empty one names nothing, and is refused."""

from pathlib import Path
from typing import Any

import click
from click.types import StringParamType

from ftkit.config.section import EMPTY


class Name(StringParamType):
    """A text that names something and is not empty, as `"$UNSET"` is in a shell: that would stand for no flag."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text.

        Raises:
            click.BadParameter: it is empty.
        """
        return super().convert(_filled(self, value, param, ctx), param, ctx)


class Place(click.Path):
    """The path of a file or a folder, and not empty: an empty path would be the folder where the command runs."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        """Say whether it may be a file that is there, and whether a folder."""
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            click.BadParameter: it is empty, or of a file or folder where it may not be.
        """
        return super().convert(_filled(self, value, param, ctx), param, ctx)


def _filled(kind: click.ParamType[Any], value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    if value == "":
        kind.fail(EMPTY, param, ctx)
    return value
