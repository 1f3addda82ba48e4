"""Find the architecture of a model: in the shipped table, in a folder with config.json, or on the hub.

The table holds the facts of public config.json files (each row names its source), so that a plan needs no download.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit.config.tree import DEMO, LabelKind, RunConfig
from ftkit.errors import ModelError, nearest
from ftkit.models.source import PROBLEM_TYPES

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


def table_names() -> list[str]:
    """Return the names of the shipped table."""
    return list(_table())


def find_row(name: str) -> str | None:
    """Return the name by which the table knows a model, also by its name on the hub; None: not, or it is a folder's."""
    return None if Path(name).exists() else _rows().get(_last_part(name))


def hub_name(name: str) -> str:
    """Return the name by which the hub knows a model of the table; any other name as it is."""
    row = find_row(name)
    return name if row is None else str(_table()[row]["source"]).removeprefix("https://huggingface.co/")


def find_architecture(config: RunConfig, num_labels: int | None = None) -> Any:
    """Return the transformers configuration of a run's model.

    Args:
        config: its model section names the model.
        num_labels: classes, where it classifies; None: as the configuration says, else two.

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
        kind, known = unseen_labels(config)
        architecture.num_labels = num_labels or known
        architecture.problem_type = PROBLEM_TYPES[kind]
    return architecture


@cache
def _table() -> dict[str, Any]:
    text = (resources.files("ftkit.plan") / "architectures.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@cache
def _rows() -> dict[str, str]:
    """Return the rows' names by themselves and by the last part of the hub's, which is that of their source."""
    return {_last_part(row["source"]): name for name, row in _table().items()} | {name: name for name in _table()}


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()


def _from_table(key: str) -> Any:
    from transformers import AutoConfig

    fields = dict(_table()[key]["config"])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def _from_folder_or_hub(config: RunConfig) -> Any:
    from transformers import AutoConfig

    from ftkit.models.gguf import if_converted
    from ftkit.models.source import resolve_source

    name = config.model.name
    if name.endswith("config.json") and Path(name).is_file():
        return AutoConfig.from_pretrained(Path(name).parent)
    source = if_converted(resolve_source(config.model, config.task))
    try:
        return AutoConfig.from_pretrained(source.name, **source.arguments)
    except (OSError, ValueError) as error:
        if name == DEMO or Path(name).exists():
            raise
        hint = nearest(_last_part(name), table_names())
        raise ModelError(
            f"no model {name!r} in the planner's table, in a folder of that name, or in the hub's cache; {hint} "
            "(or give the folder of its config.json)"
        ) from error
