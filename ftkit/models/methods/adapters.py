"""LoRA adapters: which modules they stand beside, and how they are added and saved; the only importer of peft."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftkit.config.tree import Lora
from ftkit.errors import ModelError, nearest
from ftkit.models import bnb

PRESETS = ("attention", "mlp", "all-linear")
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def add_adapters(model: nn.Module, method: Lora, head: Iterable[str], dtype: torch.dtype) -> nn.Module:
    """Wrap a model with LoRA adapters; only they and the head train.

    Args:
        model: frozen or not, quantized or not; its linear layers are 4-bit, ordinary or Conv1D.
        method: rank, scale, targets.
        head: names of modules that train whole and are saved with the adapters.
        dtype: what the adapters compute in.

    Returns:
        A PEFT model.

    Raises:
        ModelError: no module matches the targets, or PEFT puts no adapter beside them.
    """
    if any(map(bnb.is_packed_type, model.parameters())):
        bnb.preload()
        return _adapt(model, method, tuple(head), dtype)
    with _without_bitsandbytes():
        return _adapt(model, method, tuple(head), dtype)


def _adapt(model: nn.Module, method: Lora, names: tuple[str, ...], dtype: torch.dtype) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    chosen = choose_targets(model, method, names)
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        lora_dropout=method.dropout,
        target_modules=_shortest(model, chosen),
        modules_to_save=list(names) or None,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        fan_in_fan_out=any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in chosen),
    )
    try:
        adapted: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:  # such as modules that the kernels of a model read themselves
        raise ModelError(f"PEFT refuses method.targets: {error}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return adapted


@contextmanager
def _without_bitsandbytes() -> Iterator[None]:
    """Hide bitsandbytes, if nobody has imported it yet, from PEFT, which would load it for adapters of any model.

    PEFT imports it at its own start (peft/helpers.py 0.21), and asks at each adapter whether the layer is in 4 bits
    (peft/tuners/lora/model.py, _create_new_module). What it has found it remembers; a QLoRA may follow in this process.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        from peft import import_utils

        import_utils.is_bnb_available.cache_clear()
        import_utils.is_bnb_4bit_available.cache_clear()


def choose_targets(model: nn.Module, method: Lora, head: Iterable[str] = ()) -> list[str]:
    """Return the full names of the modules that get an adapter.

    The presets mean the linear layers inside the numbered layers of the model: `attention` those below a module whose
    name has `attn` or `attention` in it, `mlp` the others. A name of one's own matches modules by their last parts.

    Args:
        model: any transformer.
        method: targets and layers.
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
    chosen = {name for target in method.targets for name in _matches(linear, target)}
    if method.layers is not None:
        numbers = {int(match[1]) for name in chosen if (match := _LAYER.search(name))}
        if absent := sorted(set(method.layers) - numbers):
            raise ModelError(f"method.layers names {absent}, but the targets lie in layers {_span(numbers)}")
        chosen = {name for name in chosen if (match := _LAYER.search(name)) and int(match[1]) in method.layers}
    return [name for name in linear if name in chosen]


def save_adapters(model: nn.Module, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write adapters and head as PEFT does, as safetensors.

    Args:
        model: what `add_adapters` returned; its own tensors may be partitioned.
        folder: where to.
        weights: every trainable tensor, whole, by its name in the model.
    """
    saver: Any = model
    saver.save_pretrained(str(folder), state_dict=dict(weights), safe_serialization=True, save_embedding_layers=False)


def is_adapted(model: nn.Module) -> bool:
    """Return whether `add_adapters` made this model."""
    return hasattr(model, "peft_config") and hasattr(model, "base_model")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that adapters were added to, or the model itself."""
    base: nn.Module = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]  # PEFT's
    return base


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


def _shortest(model: nn.Module, chosen: list[str]) -> list[str]:
    """Name the chosen modules by what follows the layer's number, where that means the same modules."""
    short = sorted({_LAYER.split(name)[-1] for name in chosen})
    meant = {
        name
        for name, _ in model.named_modules()
        if any(name == suffix or name.endswith(f".{suffix}") for suffix in short)
    }
    return short if meant == set(chosen) else chosen


def _span(numbers: set[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else "without numbers"
