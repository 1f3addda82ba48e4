"""Experts of a mixture in 4 bits: parameters of three dimensions, which bitsandbytes' layers do not hold.

transformers keeps the experts of a layer as parameters [E, out, in] of one module, whose code multiplies by them in one
of several ways. Each becomes a packed weight behind a parametrization of torch, as `bitsandbytes.nn.parametrize` makes
it: the module's code reads a whole weight, unpacked once for each forward.

Autograd would keep the unpacked weight from the forward to the backward of every layer, and 4 bits would save nothing.
So what it keeps of such a weight is a note, and the backward unpacks again.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize

from ftkit.models import bnb, foreign
from ftkit.models.partitions import gathered


def expert_parameters(model: nn.Module, keep: Iterable[str] = ()) -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules of a model that hold experts, each with the name of a parameter of three dimensions.

    Args:
        model: any transformer, its experts in 4 bits or not.
        keep: names of modules that are passed over, with all below them.
    """
    kept = tuple(keep)
    for path, module in model.named_modules():
        is_kept = any(path == one or path.startswith(f"{one}.") for one in kept)
        if is_kept or "expert" not in type(module).__name__.lower():
            continue
        packed = [name for name, one in parametrizations(module) if isinstance(one[0], Unpack)]
        whole = [name for name, one in module.named_parameters(recurse=False) if one.ndim == 3]
        yield from ((module, name) for name in (*packed, *whole))


def pack_experts(model: nn.Module, packing: bnb.Packing, keep: Iterable[str]) -> None:
    """Pack the experts of a model in 4 bits, in place; a model without experts stays as it is.

    Args:
        model: frozen, with weights or on `meta`.
        packing: how weights are packed.
        keep: names of modules that are not to be packed, with all below them.
    """
    for module, name in list(expert_parameters(model, keep)):
        unpack = Unpack()
        packed = bnb.packed_parameter(cast(torch.Tensor, getattr(module, name)), packing, unpack)
        setattr(module, name, packed)
        parametrize.register_parametrization(module, name, unpack, unsafe=True)
    for module in {module: None for module, _ in expert_parameters(model, keep)}:
        vars(module)["forward"] = _Forgetful(module)


def packed_experts(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Return the classes of modules whose experts are in 4 bits, each with the name of a parameter, each pair once."""
    found = {
        (parametrize.type_before_parametrizations(module).__name__, name): None
        for module, name in expert_parameters(model)
        if any(name == packed for packed, _ in parametrizations(module))
    }
    return tuple(found)


def parametrizations(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the parametrized tensors of a module by name."""
    yield from getattr(module, "parametrizations", {}).items()


class Unpack(nn.Module):
    """Makes a whole weight of a packed one, and remembers which it made last.

    Attributes:
        storage: of the weight that it made last; None before and after a forward of the module.
    """

    def __init__(self) -> None:
        """Start with no weight made."""
        super().__init__()
        self.storage: int | None = None

    @torch.no_grad()
    def forward(self, packed: Any) -> torch.Tensor:
        """Return the weight [E, out, in] of packed values."""
        weight = bnb.unpacked(packed.data, packed.quant_state)
        self.storage = foreign.storage_key(weight.untyped_storage())
        return weight

    @torch.no_grad()
    def again(self, packed: Any) -> torch.Tensor:
        """Return the weight in a backward."""
        return bnb.unpacked(gathered(packed), packed.quant_state)


@dataclass(frozen=True)
class _View:
    """A part of an unpacked weight, to be looked up again in the backward."""

    weight: Any
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Forgetful:
    """The forward of a module of experts, which autograd does not keep unpacked weights of."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        module = self._module
        weights = [one for _, one in parametrizations(module)]
        # Only the innermost hooks are called, and checkpointing or ZeRO-3 may have theirs around.
        pack, unpack = foreign.saving_hooks()
        # Code that takes one expert after another asks for parts; the graph of the layer drops this with its last node.
        unpacked: dict[Any, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> Any:
            storage = foreign.storage_key(tensor.untyped_storage())
            weight = next((one for one in weights if one[0].storage == storage), None)
            if weight is None:
                return pack(tensor)
            return _View(weight, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

        def bring(kept: Any) -> torch.Tensor:
            if not isinstance(kept, _View):
                return unpack(kept)
            whole = unpacked.get(kept.weight)
            if whole is None:
                whole = kept.weight[0].again(kept.weight.original)
            if math.prod(kept.size) < whole.numel():
                unpacked[kept.weight] = whole
            return whole.as_strided(kept.size, kept.stride, kept.offset)

        _forget(weights)  # somebody may have read a weight in between, whose storage is another tensor's by now
        # While the cache lasts a weight is unpacked once, on every rank, and its storage is no other tensor's.
        with parametrize.cached(), saved_tensors_hooks(keep, bring):
            try:
                return type(module).forward(module, *arguments, **settings)
            finally:
                _forget(weights)


def _forget(weights: Iterable[Any]) -> None:
    for weight in weights:
        weight[0].storage = None
