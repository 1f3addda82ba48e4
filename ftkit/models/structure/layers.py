"""The layers of a model: the modules that follow one another, each with the same work to do."""

from typing import Any, cast

from torch import nn

from ftkit.errors import ModelError


def transformer_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Return the list of a model's layers.

    It is the longest list of modules that is not inside another one: one may have more experts than there are layers.

    Args:
        model: a transformers model, or one around it.

    Returns:
        Its name and the list; None where a model has none.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    names = tuple(f"{name}." for name, _ in lists)
    outermost = [(name, one) for name, one in lists if not name.startswith(tuple(n for n in names if n != f"{name}."))]
    return max(outermost, key=lambda entry: len(entry[1]), default=None)


def first_trained_layer(model: nn.Module) -> int | None:
    """Return the number of the lowest layer that has something to train, counted from 0; None where none has."""
    found = transformer_layers(model)
    trained = [any(one.requires_grad for one in layer.parameters()) for layer in found[1]] if found else []
    return trained.index(True) if True in trained else None


def top_layers(model: nn.Module, count: int) -> tuple[int, ...]:
    """Return the numbers of the topmost layers.

    Args:
        model: a transformers model.
        count: how many.

    Raises:
        ModelError: the model has fewer layers, or two lists of them.
    """
    found = transformer_layers(model)
    num_layers = 0 if found is None else len(found[1])
    if getattr(cast(Any, model).config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} has layers that encode and layers that decode, so method.top_layers does not say "
            "which ones train; leave it out and name modules with --target, or choose another model"
        )
    if count > num_layers:
        raise ModelError(f"method.top_layers={count}, and the model has {num_layers} layers; give at most {num_layers}")
    return tuple(range(num_layers - count, num_layers))
