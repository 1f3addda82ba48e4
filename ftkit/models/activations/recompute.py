"""Decide what each layer of a model computes again in its backward; see `ftkit.config.recompute` for the levels."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils import checkpoint as activation_checkpoint

from ftkit.config.recompute import Level, Recompute
from ftkit.errors import ModelError
from ftkit.models import foreign
from ftkit.models.activations import offload
from ftkit.models.kernels import kept_products


def set_recompute(model: nn.Module, recompute: Recompute) -> None:
    """Let layers recompute at the levels that are asked for, evenly spread.

    Non-reentrant, so that it works over frozen embeddings.

    Args:
        model: a transformers model; changed in place.
        recompute: the share of the layers at each level.

    Raises:
        ModelError: the model has no layers that can.
    """
    layers = foreign.checkpointing_layers(model)
    if recompute != Recompute() and not layers:
        raise ModelError(f"{type(model).__name__} cannot recompute its layers; give --recompute none")
    for layer, level in zip(layers, recompute.levels(len(layers)), strict=True):
        set_level(layer, level)


def set_level(layer: nn.Module, level: Level) -> None:
    """Let one layer recompute at a level.

    Args:
        layer: of a transformers model.
        level: of it.
    """
    checkpoint = _CHECKPOINTS[level]
    if _BEFORE in vars(layer):
        checkpoint = _preceded(vars(layer)[_BEFORE], checkpoint)
    offloading = offload.around(layer, checkpoint)
    foreign.set_recomputing(layer, offloading or checkpoint, recomputes=level != "none" or offloading is not None)


def run_before(layer: nn.Module, action: Callable[[], None]) -> None:
    """Have something run before the layer does, each time that it computes, from the next time that its level is set.

    Args:
        layer: of a transformers model.
        action: such as bringing weights that leave between a forward and its recomputing.
    """
    vars(layer)[_BEFORE] = action


def _preceded(action: Callable[[], None], checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    def call(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        def run(*inner: Any, **settings: Any) -> Any:
            action()
            return function(*inner, **settings)

        return checkpoint(run, *arguments, **keywords)

    return call


def recompute_all(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Call a function, keep its arguments alone, and call it again in the backward."""
    return activation_checkpoint.checkpoint(function, *arguments, use_reentrant=False, **keywords)


def _recompute_cheap(function: Any, *arguments: Any, **keywords: Any) -> Any:
    return recompute_all(function, *arguments, context_fn=kept_products.contexts, **keywords)


def _call(function: Any, *arguments: Any, **keywords: Any) -> Any:
    return function(*arguments, **keywords)


_CHECKPOINTS: dict[Level, Callable[..., Any]] = {"none": _call, "cheap": _recompute_cheap, "layer": recompute_all}
_BEFORE = "_ftkit_before"
