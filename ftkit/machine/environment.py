"""Environment variables that torch and the hub's client read once, when they are imported."""

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
    work_offline_if_unreachable((config.model.name, config.data.dataset))
