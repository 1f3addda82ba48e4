"""Find where the frozen trunk of a model ends, and take what crosses there.

    trunk                                              entry       head
    embeddings, layers 0 to 11, pooler                 dropout     classifier         feature extraction of BERT
    embeddings, layers 0 to 11, last norm              score                          feature extraction of Llama
    embeddings, layers 0 to 9                          layer 10    layer 11, head     the top two layers

The entry is the first module that runs in training mode: it trains, or it drops out for what trains above it. It is
found by watching one forward, so that no architecture needs a rule of its own.

Dimension letters: B batch, T token, D model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ftkit.data.batching import MicroBatch
from ftkit.errors import ModelError
from ftkit.models.build import set_training
from ftkit.models.methods.lora import unwrapped
from ftkit.models.stand_in import states_of, with_states
from ftkit.models.structure.heads import classifies
from ftkit.models.structure.layers import transformer_layers

AROUND = "base_model.model."
"""What PEFT puts before the names of the model that it is around."""


@dataclass(frozen=True)
class Cut:
    """The border between trunk and head.

    Attributes:
        entry: the name of the module that is given what crosses.
        below: the names of the modules with tensors of their own that run before it.
        layers: the names of the layers below, each with what it returns: None a tensor, else a tuple of so many.
        dtype: of what crosses.
        width: D.
        is_flat: whether what crosses is [B, D], pooled by the trunk itself; else it is [B, T, D].
        is_pooled: whether one vector of each sequence is all that the head looks at.
    """

    entry: str
    below: tuple[str, ...]
    layers: tuple[tuple[str, int | None], ...]
    dtype: torch.dtype
    width: int
    is_flat: bool
    is_pooled: bool


def has_trunk(model: nn.Module) -> bool:
    """Return whether something of a model that is prepared for its method stays frozen; left in evaluation mode."""
    set_training(model, True)
    is_frozen = not all(module.training for module in model.modules())
    set_training(model, False)
    return is_frozen


def find_cut(model: nn.Module, micro_batch: MicroBatch, *, has_values: bool = True) -> Cut:
    """Find where the trunk of a model ends.

    Args:
        model: prepared for its method; left in evaluation mode.
        micro_batch: sequences to watch, on the model's device, best of unequal lengths.
        has_values: whether the tensors have values; where they have none, a classifier without a layer above the cut
            is supposed to look at one place of a sequence.

    Returns:
        The border.

    Raises:
        ModelError: nothing below what trains is frozen, or the model's structure does not allow it.
    """
    heads = _training_modules(model)
    calls = _watch(model, micro_batch)
    order = [name for name, _ in calls]
    entry = next((name for name in order if name in heads), None)
    if entry is None or not entry:
        raise ModelError("nothing below what trains is frozen")
    inside = tuple(f"{name}." for name in heads)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith(inside):
            raise ModelError(f"{name} trains among frozen modules")
    place = order.index(entry)
    below = tuple(dict.fromkeys(name for name in order[:place] if _has_tensors(model.get_submodule(name))))
    layers = _layers_below(model, calls[:place])
    again = {name for name in order[place:] if name in below or any(name == layer for layer, _ in layers)}
    if again:
        raise ModelError(f"{min(again)} runs below what trains and again above it")
    arrived = _arrival(model, entry, micro_batch)
    rows, tokens = micro_batch.input_ids.shape
    if arrived.shape[:-1] not in ((rows,), (rows, tokens)):
        raise ModelError(f"what arrives at {entry} has the shape {list(arrived.shape)}, and not a row for each token")
    is_flat = arrived.dim() == 2
    is_pooled = is_flat or (
        classifies(unwrapped(model))
        and (_looks_at_one(model, entry, micro_batch) if has_values else not _layers_in(model, order[place:]))
    )
    return Cut(entry, below, layers, arrived.dtype, int(arrived.shape[-1]), is_flat, is_pooled)


def crossing(model: nn.Module, cut: Cut, micro_batch: MicroBatch) -> list[torch.Tensor]:
    """Return what crosses for each sequence.

    Args:
        model: not closed, in evaluation mode.
        cut: what `find_cut` returned.
        micro_batch: on the model's device.

    Returns:
        For each sequence [1, D] where one vector is all, else [its tokens, D].

    Raises:
        ModelError: the head looks at another number of places of a sequence than it did at first.
    """
    arrived, looked_at = arriving(model, cut, micro_batch)
    if cut.is_flat:
        return list(arrived[:, None])
    if looked_at is None:
        mask = micro_batch.attention_mask
        return list(arrived) if mask is None else [one[own == 1] for one, own in zip(arrived, mask, strict=True)]
    if not (looked_at.sum(dim=1) == 1).all():
        raise ModelError(f"{cut.entry} looks at one place of some sequences and not of others")
    return list(arrived[looked_at][:, None])


def arriving(model: nn.Module, cut: Cut, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the trunk over sequences; it needs no values, so that a plan can trace it.

    Args:
        model: not closed, in evaluation mode.
        cut: what `find_cut` returned.
        micro_batch: on the model's device.

    Returns:
        What arrives at the border, [B, D] or [B, T, D]; and where one vector of each sequence is all that counts, the
        places of those, bool [B, T].
    """
    if cut.is_pooled and not cut.is_flat:
        return _looked_at(model, cut.entry, micro_batch)
    return _arrival(model, cut.entry, micro_batch), None


class _ArrivedError(Exception):
    """Ends a forward where what crosses has been seen."""


def _training_modules(model: nn.Module) -> set[str]:
    """Return the names of the modules that are in training mode with all that is in them, while the model trains."""
    set_training(model, True)
    names = {name for name, module in model.named_modules() if all(one.training for one in module.modules())}
    set_training(model, False)
    return names


def _watch(model: nn.Module, micro_batch: MicroBatch) -> list[tuple[str, Any]]:
    """Return the modules in the order in which they begin, each with what it returned."""
    calls: list[tuple[str, Any]] = []
    open_calls: list[int] = []
    handles = []

    def began(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            open_calls.append(len(calls))
            calls.append((name, None))

        return note

    def ended(name: str) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            calls[open_calls.pop()] = (name, len(output) if isinstance(output, tuple) else None)

        return note

    for name, module in model.named_modules():
        handles += [module.register_forward_pre_hook(began(name)), module.register_forward_hook(ended(name))]
    try:
        with torch.inference_mode():
            model(**micro_batch.inputs())
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _arrival(model: nn.Module, entry: str, micro_batch: MicroBatch) -> torch.Tensor:
    """Run a model as far as a module, and return the first argument that the module is given."""
    arrived: list[torch.Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arrived.append(states_of(args, kwargs))
        raise _ArrivedError

    handle = model.get_submodule(entry).register_forward_pre_hook(look, with_kwargs=True)
    try:
        with (
            torch.no_grad()
        ):  # not `inference_mode`, under which a recorder sees whole layers in the place of operators
            model(**micro_batch.inputs())
    except _ArrivedError:
        pass
    finally:
        handle.remove()
    return arrived[0]


def _looked_at(model: nn.Module, entry: str, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what arrives at a module, [B, T, D], and which places of it the logits depend on, bool [B, T].

    The gradient says it, whatever code pools: it is zero at all other places.
    """
    arrived: list[torch.Tensor] = []

    def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = states_of(args, kwargs).detach().requires_grad_()
        arrived.append(hidden)
        torch.set_grad_enabled(True)  # from here on; the trunk has run without
        return with_states(args, kwargs, hidden)

    handle = model.get_submodule(entry).register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad():
            logits = cast(Any, model(**micro_batch.inputs())).logits.float()
    finally:
        handle.remove()
    # Of unequal weights, so that logits which always sum to the same do not hide what they depend on.
    weights = torch.arange(1, logits.shape[-1] + 1, device=logits.device) ** 0.5
    (gradient,) = torch.autograd.grad((logits * weights).sum(), arrived[0], allow_unused=True)
    if gradient is None:
        raise ModelError(f"the logits do not depend on what arrives at {entry}")
    return arrived[0].detach(), (gradient != 0).any(dim=-1)


def _looks_at_one(model: nn.Module, entry: str, micro_batch: MicroBatch) -> bool:
    return bool((_looked_at(model, entry, micro_batch)[1].sum(dim=1) == 1).all())


def _layers_below(model: nn.Module, calls: Sequence[tuple[str, Any]]) -> tuple[tuple[str, int | None], ...]:
    """Return the layers among the modules that ran, each with the form of what it returned."""
    names = set(_layers_in(model, [name for name, _ in calls]))
    return tuple({name: form for name, form in calls if name in names}.items())


def _layers_in(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return those of some modules that are layers."""
    found = transformer_layers(model)
    layers = {f"{found[0]}.{number}" for number in range(len(found[1]))} if found else set()
    return [name for name in names if name in layers]


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
