"""Choose the modules of a model that get an adapter."""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from ftkit.errors import ModelError, nearest
from ftkit.models import bnb

PRESETS = ("attention", "mlp", "all-linear")
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def choose_targets(
    model: nn.Module, targets: Sequence[str], layers: Sequence[int] | None = None, head: Iterable[str] = ()
) -> list[str]:
    """Return the full names of the modules that get an adapter.

    The presets mean the linear layers inside the numbered layers of the model: `attention` those below a module whose
    name has `attn` or `attention` in it, `mlp` the others. A name of one's own matches modules by their last parts.

    Args:
        model: any transformer.
        targets: presets, or last parts of modules' names.
        layers: numbers of the layers that are adapted; None: all.
        head: modules that train whole, never targets.

    Returns:
        Names in the order of the model.

    Raises:
        ModelError: a target matches nothing, or the layers do not exist.
    """
    skipped = tuple(head)
    linear = [
        name
        for name, module in model.named_modules()
        if bnb.is_linear(module) and not any(name == one or name.startswith(f"{one}.") for one in skipped)
    ]
    chosen = {name for target in targets for name in _matches(linear, target)}
    if layers is not None:
        numbers = {int(match[1]) for name in chosen if (match := _LAYER.search(name))}
        if absent := sorted(set(layers) - numbers):
            raise ModelError(f"method.layers names {absent}, but the targets lie in layers {_span(numbers)}")
        chosen = {name for name in chosen if (match := _LAYER.search(name)) and int(match[1]) in layers}
    return [name for name in linear if name in chosen]


def _matches(linear: list[str], target: str) -> list[str]:
    if target not in PRESETS:
        found = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not found:
            known = dict.fromkeys([*PRESETS, *(name.rsplit(".", 1)[-1] for name in linear)])
            raise ModelError(f"method.targets: no linear module is called {target!r}; {nearest(target, known)}")
        return found
    inside = [name for name in linear if _LAYER.search(name)]
    attention = [name for name in inside if re.search("attn|attention", name.lower())]
    found = {"attention": attention, "all-linear": inside, "mlp": [n for n in inside if n not in set(attention)]}[
        target
    ]
    if not found:
        raise ModelError(f"method.targets: this model has no {target} layers that are linear; name modules instead")
    return found


def shortest_names(model: nn.Module, chosen: list[str]) -> list[str]:
    """Name modules by what follows the layer's number, where that means the same modules, else by their full names.

    Args:
        model: any transformer.
        chosen: what `choose_targets` returned.

    Returns:
        Names as PEFT's `target_modules` takes them.
    """
    short = sorted({_LAYER.split(name)[-1] for name in chosen})
    meant = {
        name
        for name, _ in model.named_modules()
        if any(name == suffix or name.endswith(f".{suffix}") for suffix in short)
    }
    return short if meant == set(chosen) else chosen


def _span(numbers: set[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else "without numbers"
