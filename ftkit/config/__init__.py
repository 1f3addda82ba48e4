"""The description of a run: a frozen tree of sections, filled from YAML files, presets and flags."""

from ftkit.config.tree import DataConfig, RunConfig

__all__ = ["DataConfig", "RunConfig"]
