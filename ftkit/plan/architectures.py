"""Which model a plan is about: a name of the shipped table, a folder with config.json, a hub name; never its weights.

The table holds the facts of public config.json files (each row names its source), so that a plan needs no download.
"""

import copy
import json
import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit.config import DEMO, Lora, RunConfig
from ftkit.errors import ModelError, nearest
from ftkit.plan.unroll import keep_layers

NUM_LABELS = 2
"""Classes of a classifier where nothing says how many; a head is a few thousand weights."""


@dataclass(frozen=True)
class Depth:
    """A model with as many layers as have to be traced.

    Attributes:
        config: the run, its layers named by their places in the shallow model.
        architecture: the shallow model.
        kept: which layers of the deep model it has.
        kinds: what each layer of the deep model is.
        checkpointed: for each layer of the shallow model, whether it recomputes.
    """

    config: RunConfig
    architecture: Any
    kept: list[int]
    kinds: list[Hashable]
    checkpointed: list[bool]


def table_names() -> list[str]:
    """Return the names of the shipped table."""
    return list(_table())


def find_row(name: str) -> str | None:
    """Return the name by which the table knows a model; None: it does not, or the name is a folder's."""
    if Path(name).exists():
        return None
    return next((one for one in (name.lower(), name.rsplit("/", 1)[-1].lower()) if one in _table()), None)


def find_architecture(config: RunConfig, num_labels: int = NUM_LABELS) -> Any:
    """Return the transformers configuration of a run's model.

    Args:
        config: its model section names the model.
        num_labels: classes, where it classifies.

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
        architecture.num_labels = num_labels
        architecture.problem_type = "single_label_classification"
    return architecture


def checkpointed_layers(num_layers: int, share: float) -> list[bool]:
    """Return which layers recompute: as `model.set_checkpointing` spreads them."""
    return [math.floor((number + 1) * share) > math.floor(number * share) for number in range(num_layers)]


def shallow(config: RunConfig, architecture: Any, *, exact: bool = False) -> Depth:
    """Choose the layers that have to be traced.

    Args:
        config: the run.
        architecture: of its model.
        exact: keep all of them.

    Returns:
        The shallow model; the deep one itself where it has few layers.
    """
    num_layers = int(architecture.num_hidden_layers)
    flags = checkpointed_layers(num_layers, config.model.gradient_checkpointing)
    types = getattr(architecture, "layer_types", None) or [None] * num_layers
    adapted = config.method.layers if isinstance(config.method, Lora) else None
    # What every recomputation takes, such as the positions, dies with the first layer that recomputes.
    first = flags.index(True) if any(flags) else 0
    kinds: list[Hashable] = [
        (types[number], flags[number], 0 < number == first, adapted is None or number in adapted)
        for number in range(num_layers)
    ]
    kept = list(range(num_layers)) if exact else keep_layers(kinds)
    small = copy.deepcopy(architecture)
    if len(kept) < num_layers:
        if getattr(architecture, "layer_types", None):
            small.layer_types = [types[number] for number in kept]
        small.num_hidden_layers = len(kept)
        if adapted is not None:
            places = tuple(place for place, number in enumerate(kept) if number in adapted)
            method = config.method.model_copy(update={"layers": places})
            config = config.model_copy(update={"method": method})
    return Depth(config, small, kept, kinds, [flags[number] for number in kept])


@cache
def _table() -> dict[str, Any]:
    text = (resources.files("ftkit.plan") / "architectures.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _from_table(key: str) -> Any:
    from transformers import AutoConfig

    fields = dict(_table()[key]["config"])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def _from_folder_or_hub(config: RunConfig) -> Any:
    from transformers import AutoConfig

    from ftkit.gguf import if_converted
    from ftkit.source import resolve_source

    name = config.model.name
    if name.endswith("config.json") and Path(name).is_file():
        return AutoConfig.from_pretrained(Path(name).parent)
    source = if_converted(resolve_source(config.model, config.task))
    try:
        return AutoConfig.from_pretrained(source.name, **source.arguments)
    except (OSError, ValueError) as error:
        if name == DEMO or Path(name).exists():
            raise
        hint = nearest(name.rsplit("/", 1)[-1].lower(), table_names())
        raise ModelError(
            f"no model {name!r} in the planner's table, in a folder of that name, or in the hub's cache; {hint} "
            "(or give the folder of its config.json)"
        ) from error
