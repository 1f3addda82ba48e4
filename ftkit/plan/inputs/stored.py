"""The type that a model's files hold its numbers in, as far as that is known before its weights are read."""

from functools import cache
from typing import Any

import torch

from ftkit.config.tree import ModelConfig, RunConfig, Task
from ftkit.errors import FtkitError
from ftkit.models.saving.dtypes import first_dtype
from ftkit.models.sources.gguf import if_converted
from ftkit.models.sources.known import find_row
from ftkit.models.sources.source import resolve_source, weight_files


def stored_dtype(config: RunConfig, architecture: Any) -> torch.dtype | None:
    """Return the type of a model's files: by its config.json, else by its first matrix where the files are at hand.

    Args:
        config: the run, which names the model.
        architecture: a transformers configuration of it.

    Returns:
        The type; None: neither says it.
    """
    dtype = getattr(architecture, "dtype", None)
    if dtype is None and find_row(config.model.name) is None:
        return _of_files(config.model.name, config.model.gguf_file, config.model.revision, config.task)
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


@cache
def _of_files(name: str, gguf_file: str | None, revision: str | None, task: Task) -> torch.dtype | None:
    try:
        source = if_converted(resolve_source(ModelConfig(name=name, gguf_file=gguf_file, revision=revision), task))
    except FtkitError:  # a shape alone, as that of a config.json
        return None
    return first_dtype(next(iter(weight_files(source)), None))
