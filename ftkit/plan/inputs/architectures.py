"""Find the architecture of a model: in the shipped table, in a folder with config.json, or on the hub."""

import os
from pathlib import Path
from typing import Any

from ftkit.config.paths import looks_like_path
from ftkit.config.tree import DEMO, LabelKind, RunConfig
from ftkit.errors import ModelError, nearest
from ftkit.models.sources.known import find_row, shapes, table_names
from ftkit.models.sources.source import PROBLEM_TYPES

NUM_LABELS = 2
"""Classes of a classifier where nothing says how many; a head is a few thousand weights."""


def unseen_labels(config: RunConfig) -> tuple[LabelKind, int]:
    """Return what labels are taken for where the data is not at hand: their kind, and how many there are.

    Args:
        config: its data section may say.
    """
    data = config.data
    kind = data.label_kind
    if kind == "auto":
        kind = "multi" if data.label_columns or data.label_separator else "single"
    known = len(data.label_columns or data.label_names or ()) or NUM_LABELS
    return kind, 1 if kind == "regression" else known


def find_architecture(config: RunConfig) -> Any:
    """Return the transformers configuration of a run's model.

    Args:
        config: its model section names the model; classes are as its data section says, else two.

    Returns:
        A configuration, with a pad token and without a cache.

    Raises:
        ModelError: neither in the table nor on this machine; the nearest names are said.
    """
    key = find_row(config.model.name)
    architecture = _from_folder_or_hub(config) if key is None else _from_table(key)
    architecture.use_cache = False
    if getattr(architecture, "pad_token_id", None) is None:
        architecture.pad_token_id = 0
    if config.task == "sequence-classification":
        kind, architecture.num_labels = unseen_labels(config)
        architecture.problem_type = PROBLEM_TYPES[kind]
    return architecture


def _from_table(row: str) -> Any:
    from transformers import AutoConfig

    fields = shapes(row)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def _from_folder_or_hub(config: RunConfig) -> Any:
    from transformers import AutoConfig

    from ftkit.models.sources.gguf import if_converted
    from ftkit.models.sources.source import resolve_source

    name = config.model.name
    if name.endswith("config.json") and Path(name).is_file():
        return AutoConfig.from_pretrained(Path(name).parent)
    source = if_converted(resolve_source(config.model, config.task))
    try:
        return AutoConfig.from_pretrained(source.name, **source.arguments)
    except (OSError, ValueError) as error:
        if name == DEMO or looks_like_path(name):
            raise
        hint = nearest(name.rsplit("/", 1)[-1].lower(), table_names())
        asked = "the hub's cache, and the hub was not asked" if os.environ.get("HF_HUB_OFFLINE") else "the hub"
        raise ModelError(
            f"no model {name!r} in the planner's table, in a folder of that name, or in {asked}; {hint} (or give the "
            "folder of its config.json; all of the table: ftkit plan --list)"
        ) from error
