"""Names of other libraries that are not public, each as a function that says whose it is."""

from typing import Any, cast

from torch import nn


def draw_anew(model: nn.Module, module: nn.Module) -> None:
    """Draw the weights of a module as those of a new model are drawn, by torch's generator.

    transformers 5.23, `PreTrainedModel._init_weights` and the mark `_is_hf_initialized` of what has been loaded, which
    `transformers.initialization` leaves alone.

    Args:
        model: a transformers model.
        module: a part of it; its weights are overwritten.
    """
    for part in module.modules():
        for tensor in part.parameters(recurse=False):
            cast(Any, tensor)._is_hf_initialized = False
        cast(Any, model)._init_weights(part)
