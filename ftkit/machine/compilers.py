"""The programs that compile DeepSpeed's extensions, at their first use."""

import shutil

_NEEDED = ("g++", "ninja")


def missing_compilers() -> list[str]:
    """Return the names of those that cannot be found."""
    return [name for name in _NEEDED if shutil.which(name) is None]
