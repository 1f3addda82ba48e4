"""Name files from the root, so that a configuration means the same wherever it is read."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftkit.config.tree import RunConfig

_KEYS = (
    ("model", "name"),
    ("data", "dataset"),
    ("data", "chat_template"),
    ("engine", "nvme_path"),
    ("engine", "ds_config"),
)
"""What may name a file or a folder; a name that is not a path, such as a hub's, stays."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def from_root(name: str | Path) -> Path:
    """Return the path of something from the root; a link to it keeps its own name, whose ending may say what it is."""
    path = Path(name).expanduser()
    return path.parent.resolve() / path.name if path.name else path.resolve()


def looks_like_path(name: str) -> bool:
    """Return whether a name is that of a file or a folder, there or not.

    It is where something is there, and where no model on a hub can have the name: those are `model` or `owner/model`.
    """
    return name.startswith(".") or name.endswith(".gguf") or not _HUB_NAME.fullmatch(name) or is_there(name)


def is_there(name: str | Path) -> bool:
    """Return whether there is a file or folder; no file can have the name that a long text would be."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a name, or `~somebody` who has no home here
        return False


def named_paths(config: RunConfig) -> Iterator[tuple[str, str, Path]]:
    """Yield what a configuration names that is there: section, key, and its path from the root."""
    for section, key in _KEYS:
        name = getattr(getattr(config, section), key)
        if name is not None and is_there(name):
            yield section, key, from_root(name)


def private_names(config: RunConfig) -> Iterator[str]:
    """Yield what a configuration names of this machine, whether or not it is there still."""
    for section, key in _KEYS:
        name = getattr(getattr(config, section), key)
        if name is not None and looks_like_path(name):
            yield str(name)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return a configuration whose files and folders are named from the root; the result folder stays as it is named.

    A run that goes on from another folder then finds its model and its data, and an adapter its base model.
    """
    changes: dict[str, dict[str, Any]] = {}
    for section, key, path in named_paths(config):
        changes.setdefault(section, {})[key] = str(path)
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in changes.items()}
    return config.model_copy(update=sections)
