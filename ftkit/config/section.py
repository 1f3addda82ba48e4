"""The base class of every section of the configuration, and the names in them."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

EMPTY = "it is empty; give a name, or leave it out"
"""What is said of a name or a path that is empty: a variable of the shell that is not set gives it."""


def _not_empty(name: str) -> str:
    if not name:
        raise ValueError(EMPTY)
    return name


Name = Annotated[str, AfterValidator(_not_empty)]
"""The name of a file, a folder, a model, a split or a column; an empty one would pass for one that is not given."""


class Section(BaseModel):
    """A frozen section that refuses unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
