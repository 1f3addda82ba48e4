"""Choose the modules of a model that get an adapter."""

import re
from collections.abc import Collection, Iterable, Sequence

from torch import nn

from ftkit.errors import ModelError, nearest
from ftkit.models import bnb
from ftkit.models.experts import expert_parameters

EXPERTS = "experts"
PRESETS = ("attention", "mlp", "all-linear", EXPERTS)
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def choose_targets(
    model: nn.Module,
    targets: Sequence[str],
    layers: Sequence[int] | None = None,
    head: Iterable[str] = (),
    moved: Collection[str] = (),
) -> list[str]:
    """Return the full names of the modules, and of the experts' parameters, that get an adapter.

    The presets mean the linear layers inside the numbered layers of the model: `attention` those below a module whose
    name has `attn` or `attention` in it, `mlp` the others. `experts` means the parameters of three dimensions that
    hold a mixture's experts. A name of one's own matches modules by their last parts.

    Args:
        model: any transformer.
        targets: presets, or last parts of modules' names.
        layers: numbers of the layers that are adapted; None: all.
        head: modules that train whole, never targets.
        moved: last names of linear layers that cannot have one; presets leave them out.

    Returns:
        Names in the order of the model.

    Raises:
        ModelError: a target matches nothing, or the layers do not exist.
    """
    skipped, names = tuple(head), {module: name for name, module in model.named_modules()}
    linear = [
        name
        for name, module in model.named_modules()
        if bnb.is_linear(module) and not any(name == one or name.startswith(f"{one}.") for one in skipped)
    ]
    experts = [f"{names[module]}.{name}" for module, name in expert_parameters(model, skipped)]
    chosen = {name for target in targets for name in _matches(linear, experts, target, moved)}
    if layers is not None:
        numbers = {int(match[1]) for name in chosen if (match := _LAYER.search(name))}
        if absent := sorted(set(layers) - numbers):
            raise ModelError(f"method.layers names {absent}, but the targets lie in layers {_span(numbers)}")
        chosen = {name for name in chosen if (match := _LAYER.search(name)) and int(match[1]) in layers}
    return [name for name in (*linear, *experts) if name in chosen]


def _matches(linear: list[str], experts: list[str], target: str, moved: Collection[str]) -> list[str]:
    if target not in PRESETS:
        return _named(linear, target, moved)
    inside = [name for name in linear if _LAYER.search(name) and name.rsplit(".", 1)[-1] not in moved]
    attention = [name for name in inside if re.search("attn|attention", name.lower())]
    found = {
        "attention": attention,
        "all-linear": inside,
        "mlp": [name for name in inside if name not in set(attention)],
        EXPERTS: experts,
    }[target]
    if not found and experts:
        raise ModelError(
            f"method.targets: this model has no {target} layers that are linear and can have adapters: its experts are "
            "parameters of three dimensions, beside which method.targets=[experts] puts adapters"
        )
    if not found:
        raise ModelError(f"method.targets: this model has no {target} layers that are linear; name modules instead")
    return found


def _named(linear: list[str], target: str, moved: Collection[str]) -> list[str]:
    found = [name for name in linear if name == target or name.endswith(f".{target}")]
    if not found:
        known = dict.fromkeys([*PRESETS, *(name.rsplit(".", 1)[-1] for name in linear)])
        raise ModelError(f"method.targets: no linear module is called {target!r}; {nearest(target, known)}")
    if target.rsplit(".", 1)[-1] in moved:
        raise ModelError(
            f"method.targets: PEFT would put the adapters of {target!r} beside this model's experts, which had that "
            "name before transformers 5; leave it out, or name experts"
        )
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
