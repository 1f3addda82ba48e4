"""Let a model run from above its frozen trunk, which it then does without.

A *closed* model still runs its own code from beginning to end, and so makes masks, positions, kinds of attention and
pooling as it always does. But its lower layers hand on what they are given, its table of tokens gives zeros, and at the
entry the hidden states that came with the micro-batch take the place of what arrives there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from ftkit.models.kernels.chunked_loss import Targets
from ftkit.models.methods.lora import unwrapped
from ftkit.models.stand_in import StandIn, handing_on, with_states
from ftkit.models.trunk.cut import AROUND, Cut

_FORWARD_ARGUMENT = "hidden"
"""The field of a micro-batch that carries what crosses; a closed model takes it out before its own code runs."""


@contextmanager
def closed(model: nn.Module, cut: Cut) -> Iterator[None]:
    """Close a model for a while; see `close`."""
    reopen = close(model, cut)
    try:
        yield
    finally:
        reopen()


def close(model: nn.Module, cut: Cut, *, is_loaded: bool = True) -> Callable[[], None]:
    """Let a model run from the cut on; the weights of layers and tokens below are let go of.

    Args:
        model: changed in place; micro-batches must carry `hidden` from now on.
        cut: what `find_cut` returned.
        is_loaded: whether those weights are there; else they are on `meta`, and what stands for them is on the CPU.

    Returns:
        Undoes it, and keeps the weights for as long as it is kept itself.
    """
    arriving: list[torch.Tensor] = []

    def take(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        kwargs = dict(kwargs)
        # Kept until the next forward: a layer that recomputes asks for it once more in the backward.
        arriving[:] = [kwargs.pop(_FORWARD_ARGUMENT)]
        return args, kwargs

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = arriving[0].to(cut.dtype)
        hidden = hidden[:, None] if cut.is_pooled and not cut.is_flat else hidden
        if args[1:] and isinstance(args[1], Targets):  # a head that is asked for the loss of some rows
            hidden = hidden.flatten(0, 1).index_select(0, args[1].places)
        return with_states(args, kwargs, hidden)

    handles = [
        model.register_forward_pre_hook(take, with_kwargs=True),
        model.get_submodule(cut.entry).register_forward_pre_hook(enter, with_kwargs=True),
    ]
    replaced = {name: model.get_submodule(name) for name in _light(model, cut)}
    for name, module in replaced.items():
        form = dict(cut.layers).get(name)
        is_layer = name in dict(cut.layers)
        stand_in = StandIn(module, handing_on(form)) if is_layer else _NoTable(module, is_loaded=is_loaded)
        model.set_submodule(name, stand_in)

    def reopen() -> None:
        for handle in handles:
            handle.remove()
        for name, module in replaced.items():
            model.set_submodule(name, module)

    return reopen


def spared(model: nn.Module, cut: Cut) -> tuple[str, ...]:
    """Return the modules whose weights a closed model does without, and which it shares with no other module.

    Args:
        model: not closed.
        cut: what `find_cut` returned.

    Returns:
        Their names in the model that adapters are around.
    """
    names = _light(model, cut)
    inside = tuple(f"{name}." for name in names)
    kept = {id(one) for name, one in model.named_parameters(remove_duplicate=False) if not name.startswith(inside)}
    alone = (name for name in names if not any(id(one) in kept for one in model.get_submodule(name).parameters()))
    return tuple(name.removeprefix(AROUND) for name in alone)


class _NoTable(nn.Module):
    """Gives zeros, in the place of the table of tokens."""

    weight: torch.Tensor

    def __init__(self, table: nn.Module, *, is_loaded: bool) -> None:
        super().__init__()
        weight = cast(Any, table).weight
        self.embedding_dim = int(weight.shape[-1])
        self.padding_idx = getattr(table, "padding_idx", None)
        empty = weight.new_zeros(0) if is_loaded else torch.zeros(0, dtype=weight.dtype)
        self.register_buffer("weight", empty, persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*input_ids.shape, self.embedding_dim, dtype=self.weight.dtype, device=input_ids.device)


def _light(model: nn.Module, cut: Cut) -> list[str]:
    """Return the names of what a closed model does without: the layers below, and the table of tokens."""
    table = cast(Any, unwrapped(model)).get_input_embeddings()
    tables = [name for name, module in model.named_modules() if module is table and name in cut.below]
    return [*(name for name, _ in cut.layers), *tables]
