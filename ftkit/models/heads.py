"""The heads of a model: the modules that make logits, and those of them that are new for a task."""

from collections.abc import Iterable
from typing import Any, cast

from torch import nn


def find_head(model: nn.Module, missing: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the modules that are new for this task.

    Newly initialised are the modules whose weights the checkpoint did not have; a classifier's own modules (all that
    is not its base model) count in any case. The output layer of a language model is not new.

    Args:
        model: a transformers model.
        missing: names of parameters that were not in the checkpoint.

    Returns:
        Names of outermost modules, in the model's order.
    """
    prefix = cast(Any, model).base_model_prefix
    absent = set(missing)
    names: list[str] = []
    for name, module in model.named_modules():
        own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        is_new = bool(own) and all(parameter in absent for parameter in own)
        is_task = "." not in name and name not in ("", prefix) and bool(own) and classifies(model)
        if (is_new or is_task) and name and not any(name.startswith(f"{one}.") for one in names):
            names.append(name)
    return tuple(names)


def output_names(model: nn.Module) -> tuple[str, ...]:
    """Return the name of the layer that makes logits of hidden states, where the model has one."""
    layer = cast(Any, model).get_output_embeddings()
    return tuple(name for name, module in model.named_modules() if module is layer)


def classifies(model: nn.Module) -> bool:
    """Return whether a model gives one vector of logits for each sequence."""
    return "ForSequenceClassification" in type(model).__name__
