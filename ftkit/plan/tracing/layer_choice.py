"""Choose the few layers that stand for all of them: one per kind and neighbourhood.

What a layer is made of is read from the model itself, built on `meta`: its code decides, for example, that the first
layers are dense and the others mixtures of experts.
"""

import copy
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ftkit.config.recompute import Level
from ftkit.config.tree import RunConfig
from ftkit.models.build import build_bare_model
from ftkit.models.kernels.first_place import pooled_layer
from ftkit.models.methods import method_of
from ftkit.observe.recorded import layer_names
from ftkit.plan.tracing.unroll import keep_layers, representatives


@dataclass(frozen=True)
class ShallowModel:
    """A model with only the layers that have to be traced.

    Attributes:
        config: the run, which names layers by their places in the shallow model.
        architecture: its transformers configuration.
        kept: the layers of the deep model that it has.
        kinds: what each layer of the deep model is.
        levels: for each layer of the shallow model, what it recomputes.
    """

    config: RunConfig
    architecture: Any
    kept: list[int]
    kinds: list[Hashable]
    levels: list[Level]

    @property
    def is_whole(self) -> bool:
        """Whether it has every layer."""
        return len(self.kept) == len(self.kinds)

    @property
    def copies(self) -> Counter[int]:
        """How many layers of the deep model each of its layers stands for."""
        return Counter(representatives([self.kinds[number] for number in self.kept], self.kinds))


def choose_layers(config: RunConfig, architecture: Any, *, exact: bool = False) -> ShallowModel:
    """Choose the layers that have to be traced.

    Args:
        config: the run.
        architecture: of its model.
        exact: keep all of them.

    Returns:
        The shallow model; it is whole where the deep one has few layers or cannot be made shallow.

    Raises:
        ModelError: there is no such model for the task.
    """
    num_layers = int(architecture.num_hidden_layers)
    levels = config.model.recompute.levels(num_layers)
    whole = ShallowModel(config, architecture, list(range(num_layers)), list(range(num_layers)), levels)
    named = getattr(config.method, "layers", None) or ()
    if exact or any(number >= num_layers for number in named):  # the whole model says which layers are not there
        return whole
    structure = _structure(config, architecture)
    if len(structure) != num_layers:
        return whole
    lists = _lists(architecture, num_layers)
    method = method_of(config)
    # What every recomputation takes, such as the positions, dies with the first layer that recomputes.
    first = next((number for number, level in enumerate(levels) if level != "none"), 0)
    kinds: list[Hashable] = [
        (
            structure[number],
            *(repr(one[number]) for one in lists.values()),
            levels[number],
            0 < number == first,
            # It gives up what the first layer was given, which the model's own code holds to the end of the forward.
            number == 1 and config.model.offload_activations,
            method.adapts(number, num_layers),
        )
        for number in range(num_layers)
    ]
    kept = keep_layers(kinds)
    try:
        small = _shortened(architecture, kept, lists)
        are_meant = _structure(config, small) == [structure[number] for number in kept]
    except Exception:  # the code of any model may refuse; the whole one is what was asked for
        return whole
    if not are_meant:
        return whole
    config = config.model_copy(update={"method": method.on_layers(kept, num_layers)})
    return ShallowModel(config, small, kept, kinds, [levels[number] for number in kept])


def _structure(config: RunConfig, architecture: Any) -> list[Hashable]:
    """Return what each layer of a model is: the types of its modules, the shapes of its weights, whether it pools."""
    model = build_bare_model(config, architecture, torch.float32)
    layers = [model.get_submodule(name) for name in layer_names(model)]
    pooled = pooled_layer(model) if config.model.lean else None
    return [
        (
            tuple((name, type(module)) for name, module in layer.named_modules()),
            tuple((name, parameter.shape) for name, parameter in layer.named_parameters()),
            layer is pooled,
        )
        for layer in layers
    ]


def _lists(architecture: Any, num_layers: int) -> dict[str, list[Any]]:
    """Return the fields of a configuration that say something of each layer, such as `layer_types`."""
    return {
        name: list(value)
        for name, value in vars(architecture).items()
        if isinstance(value, (list, tuple)) and len(value) == num_layers
    }


def _shortened(architecture: Any, kept: list[int], lists: dict[str, list[Any]]) -> Any:
    """Return the configuration of a model with some of the layers alone.

    Whether the layers are then those that were meant, the caller sees from the model.
    """
    small = copy.deepcopy(architecture)
    for name, values in lists.items():
        setattr(small, name, [values[number] for number in kept])
    small.num_hidden_layers = len(kept)
    return small
