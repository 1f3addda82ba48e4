"""Names of transformers' loading that are not public: what it makes weights of, and how it reads them."""

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from ftkit.models.foreign import patched
from ftkit.models.sources.positions import PositionFile


def import_losses() -> None:
    """Import transformers' losses, and scipy with the first that calls its solver, which those of pictures alone do.

    `linear_sum_assignment` (transformers 5.23, loss/loss_for_object_detection.py and others): scipy.optimize takes a
    fifth of a second of each start, and 35 MB that stay.
    """
    name = "scipy.optimize"
    if name in sys.modules:
        return

    def linear_sum_assignment(*args: Any, **kwargs: Any) -> Any:
        return importlib.import_module(name).linear_sum_assignment(*args, **kwargs)

    sys.modules[name] = cast(Any, SimpleNamespace(linear_sum_assignment=linear_sum_assignment))
    try:
        importlib.import_module("transformers.loss.loss_utils")
    finally:
        del sys.modules[name]


@contextmanager
def reading_what_stays() -> Iterator[None]:
    """Let transformers read the weights that it keeps, by position, and none of those that stay on `meta`.

    It reads every tensor before it moves it where `device_map` says (transformers 5.23, core_model_loading.py,
    `_materialize_copy`), out of files that it maps (modeling_utils.py, `safe_open`).
    """
    from transformers import core_model_loading, modeling_utils

    plain = core_model_loading._materialize_copy

    def materialize(tensor: Any, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        if str(device) == "meta" and not isinstance(tensor, torch.Tensor):
            return torch.empty(tensor.get_shape(), dtype=dtype, device="meta")
        return plain(tensor, device, dtype)

    def open_by_position(path: Any, **_: Any) -> PositionFile:
        return PositionFile(path)

    with (
        patched(core_model_loading, "_materialize_copy", materialize),
        patched(modeling_utils, "safe_open", open_by_position),
    ):
        yield


class Operation(Enum):
    """What transformers does with stored tensors (transformers 5.23, core_model_loading.py)."""

    STACK = auto()
    """`MergeModulelist`: those of each pattern, along a new dimension."""
    JOIN = auto()
    """`Concatenate`: those of all patterns, along a dimension."""
    OTHER = auto()


@dataclass(frozen=True)
class Conversion:
    """What transformers loads a tensor of a model from.

    Attributes:
        stored: the names of tensors in the files, in their order: one list for each of its patterns.
        operations: what is done with them, each along a dimension; none: the tensor is the only one stored.
    """

    stored: tuple[tuple[str, ...], ...]
    operations: tuple[tuple[Operation, int], ...] = ()


def conversions(model: nn.Module, tensors: Mapping[str, torch.Tensor], stored: Iterable[str]) -> dict[str, Conversion]:
    """Return what transformers would load the tensors of a model from.

    `rename_source_key`, as `convert_and_load_state_dict_in_model` calls it on the names in their natural order
    (transformers 5.23, core_model_loading.py), by the rules of `get_model_conversion_mapping` (conversion_mapping.py).

    Args:
        model: the transformers model itself.
        tensors: its tensors by name.
        stored: the names in the files.

    Returns:
        By the names in the model. Of several that are made of one stored tensor, the first alone.
    """
    from transformers import core_model_loading as loading
    from transformers.conversion_mapping import get_model_conversion_mapping

    rules = get_model_conversion_mapping(cast(Any, model))
    renamings = [one for one in rules if isinstance(one, loading.WeightRenaming)]
    converters = [one for one in rules if isinstance(one, loading.WeightConverter)]
    prefix = cast(Any, model).base_model_prefix
    rename = partial(loading.rename_source_key, base_model_prefix=prefix, meta_state_dict=cast(Any, tensors))
    found: dict[str, dict[str | None, list[str]]] = {}
    for one in sorted(stored, key=loading.dot_natural_key):
        name, pattern = rename(one, renamings, converters)
        if name not in tensors and one in tensors:
            name, pattern = rename(one, [], [])
        if name in tensors:
            found.setdefault(name, {}).setdefault(pattern, []).append(one)
    return {name: _conversion(names, converters) for name, names in found.items()}


def _conversion(names: Mapping[str | None, list[str]], converters: Iterable[Any]) -> Conversion:
    """Return what a tensor is loaded from, given the names by the pattern that they match; None: they match none."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    if None in names:
        return Conversion(((names[None][0],),))
    known: dict[type[Any], Operation] = {MergeModulelist: Operation.STACK, Concatenate: Operation.JOIN}
    converter = next((one for one in converters if names.keys() <= set(one.source_patterns)), None)
    if converter is None:  # several rules, of which each makes the tensor from some of the stored ones
        return Conversion(tuple(map(tuple, names.values())), ((Operation.OTHER, 0),))
    ordered = (tuple(names[one]) for one in converter.source_patterns if one in names)
    operations = ((known.get(type(one), Operation.OTHER), getattr(one, "dim", 0)) for one in converter.operations)
    return Conversion(tuple(ordered), tuple(operations))
