"""Environment variables that torch, oneDNN and the hub's client read once, when they are imported."""

import os

from ftkit.config.tree import RunConfig
from ftkit.machine.hub import work_offline_if_unreachable
from ftkit.machine.memory import grow_segments


def prepare_environment(config: RunConfig) -> None:
    """Set the variables for a run; call it before torch and transformers are imported. What the user set stays.

    Args:
        config: the run.
    """
    if config.engine.expandable_segments:
        grow_segments()
    # oneDNN keeps a compiled kernel for each shape, and micro-batches come in many shapes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    work_offline_if_unreachable((config.model.name, config.data.dataset))
