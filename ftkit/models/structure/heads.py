"""The heads of a model: the modules that make its logits, and those of them that may be new."""

from collections.abc import Iterable
from typing import Any, cast

from torch import nn

_POOLER = "pooler"
"""What transformers' encoders call the layer between trunk and head, which many checkpoints come without."""


def task_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a classifier's own modules: all with weights that are not its base model."""
    prefix = cast(Any, model).base_model_prefix
    own = [name for name, module in model.named_children() if name != prefix and any(True for _ in module.parameters())]
    return tuple(own) if classifies(model) else ()


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that weights may come without: a classifier's own, and its base's pooler."""
    own = task_modules(model)
    base = getattr(model, cast(Any, model).base_model_prefix, None)
    has_pooler = bool(own) and getattr(base, _POOLER, None) is not None
    return (*own, f"{cast(Any, model).base_model_prefix}.{_POOLER}") if has_pooler else own


def find_head(model: nn.Module, missing: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the modules that are new for this task.

    A classifier's own modules count in any case, and its base's pooler where the weights came without one. The output
    layer of a language model is not new.

    Args:
        model: a transformers model.
        missing: names of parameters that were not in the weights.

    Returns:
        Names in the model's order.
    """
    own, absent = task_modules(model), set(missing)
    heads = [name for name in head_names(model) if name in own or any(one.startswith(f"{name}.") for one in absent)]
    return tuple(name for name, _ in model.named_modules() if name in heads)


def output_names(model: nn.Module) -> tuple[str, ...]:
    """Return the name of the layer that makes logits of hidden states, where the model has one."""
    layer = cast(Any, model).get_output_embeddings()
    return tuple(name for name, module in model.named_modules() if module is layer)


def classifies(model: nn.Module) -> bool:
    """Return whether a model gives one vector of logits for each sequence."""
    return "ForSequenceClassification" in type(model).__name__
