"""Autograd that does not hold on to weights which ZeRO-3 has taken back.

A linear layer keeps its weight for the backward as a view (`weight.t()`), so the gathered whole would live on from the
forward to the backward of every layer, and stage 3 would save nothing. DeepSpeed's own remedy replaces
`torch.nn.functional.linear` for the whole process: it rounds otherwise than torch's, knows no other operator, and keeps
the input of every frozen layer too (deepspeed/runtime/zero/linear.py). Here a note of whose view it was takes the place
of any such view, and the rest is torch's.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from ftkit.engine.foreign import own_parameters
from ftkit.models.foreign import storage_key
from ftkit.models.partitions import gathered


@dataclass(frozen=True)
class _View:
    """A part of a weight, to be looked up again in the backward."""

    owner: Any
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class ReleasedWeights(saved_tensors_hooks):
    """A context for the forward of a model whose weights come and go."""

    def __init__(self, model: nn.Module) -> None:
        """Watch the weights of a model that DeepSpeed has prepared: its hooks run first, and gather."""
        super().__init__(self._pack, self._unpack)
        self._owners: dict[int, nn.Parameter] = {}
        for module in model.modules():
            if own_parameters(module):
                module.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, _: Any) -> None:
        for parameter in own_parameters(module).values():
            if parameter is not None:
                self._owners[storage_key(parameter.untyped_storage())] = parameter

    def _pack(self, tensor: torch.Tensor) -> Any:
        storage = storage_key(tensor.untyped_storage())
        owner = self._owners.get(storage)
        # An old address may belong to something else by now.
        if owner is None or storage_key(owner.untyped_storage()) != storage or owner.dtype != tensor.dtype:
            return tensor
        return _View(owner, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, saved: Any) -> torch.Tensor:
        if not isinstance(saved, _View):
            return saved  # type: ignore[no-any-return]  # what was packed as it is
        whole = gathered(saved.owner)
        return whole.as_strided(saved.size, saved.stride, saved.offset)
