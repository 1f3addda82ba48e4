"""The layers of a model that are streamed, and the place of each of their tensors in a buffer; values play no part."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from ftkit.errors import ModelError
from ftkit.models import foreign
from ftkit.models.layers import transformer_layers

NUM_BUFFERS = 2
"""One layer computes while the next one comes."""
_ALIGNMENT = 64
"""Bytes: torch's allocator on a CPU aligns to as many, and matrix products may round by their address."""


@dataclass(frozen=True)
class Slot:
    """The place of a frozen weight in a buffer.

    Attributes:
        name: of the weight in the transformers model, before a method changes it.
        owner: the module that has the weight.
        own: the name of the weight in it.
        offset: bytes from the start of the buffer.
    """

    name: str
    owner: nn.Module
    own: str
    offset: int

    @property
    def parameter(self) -> nn.Parameter:
        """The weight; outside the window it is a stand-in of one number, seen in the weight's shape."""
        return cast(nn.Parameter, getattr(self.owner, self.own))

    @property
    def num_bytes(self) -> int:
        """Bytes that the weight takes."""
        return self.parameter.numel() * self.parameter.itemsize

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the weight's part of a buffer, in its type and shape.

        Args:
            buffer: uint8, one dimension.
        """
        part = buffer[self.offset : self.offset + self.num_bytes]
        return part.view(self.parameter.dtype).view(self.parameter.shape)


@dataclass(frozen=True)
class Layout:
    """All that is streamed of a model.

    Attributes:
        layers: the weights of each layer, in the order in which the layers run.
        num_buffers: of the window.
    """

    layers: tuple[tuple[Slot, ...], ...]
    num_buffers: int = NUM_BUFFERS

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a buffer: those of the largest layer."""
        return max(map(_end, self.layers))

    @property
    def window_bytes(self) -> int:
        """Bytes of all buffers: what streamed layers take of the device, however many there are."""
        return self.num_buffers * self.buffer_bytes

    @property
    def streamed_bytes(self) -> int:
        """Bytes of all weights that are streamed: what is read in a pass over the layers."""
        return sum(slot.num_bytes for layer in self.layers for slot in layer)


def leave_out(model: nn.Module) -> Layout:
    """Put a stand-in in the place of each weight of a model's layers.

    Args:
        model: a transformers model whose layers' weights are on `meta`, before a method changes it; changed in place.

    Returns:
        What is to be streamed.

    Raises:
        ModelError: the model has no layers with weights of their own, or they cannot recompute.
    """
    kind = type(model).__name__
    if not names_to_stream(model):
        raise ModelError(f"{kind} has no list of layers with weights of their own; leave engine.stream_layers out")
    if not foreign.checkpointing_layers(model):
        raise ModelError(f"{kind} cannot recompute its layers, as streamed ones do; leave engine.stream_layers out")
    # Where the other weights are; on `meta` for a model that is only planned.
    device = next((one.device for one in model.parameters() if not one.is_meta), torch.device("meta"))
    layers = tuple(tuple(_slots(model, names, device)) for names in _names(model))
    return Layout(layers, min(NUM_BUFFERS, len(layers)))


def names_to_stream(model: nn.Module) -> list[str]:
    """Return the names of the weights of a model's layers that `leave_out` would leave out."""
    return [name for layer in _names(model) for name in layer]


def _names(model: nn.Module) -> Iterator[list[str]]:
    """Yield the names of the weights of each layer; what is shared with another module stays."""
    found = transformer_layers(model)
    if found is None:
        return
    owners = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    prefix, layers = found
    for number, layer in enumerate(layers):
        yield [f"{prefix}.{number}.{name}" for name, one in layer.named_parameters() if owners[id(one)] == 1]


def _slots(model: nn.Module, names: list[str], device: torch.device) -> Iterator[Slot]:
    offset = 0
    for name in names:
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        weight = module.get_parameter(own)
        # One number in the shape of the weight, so that whoever asks for shape or type is answered.
        stand_in = torch.empty((), dtype=weight.dtype, device=device).expand(weight.shape)
        module.register_parameter(own, nn.Parameter(stand_in, requires_grad=False))
        slot = Slot(name, module, own, offset)
        yield slot
        offset += -(-slot.num_bytes // _ALIGNMENT) * _ALIGNMENT


def _end(layer: tuple[Slot, ...]) -> int:
    return layer[-1].offset + -(-layer[-1].num_bytes // _ALIGNMENT) * _ALIGNMENT if layer else 0
