"""The layers of a model that are streamed, and the place of each of their tensors in a buffer; values play no part."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ftkit.errors import ModelError
from ftkit.models import bnb, foreign
from ftkit.models.left_out import LeftOut, left_out, mark, placeholder
from ftkit.models.streaming.head import head_to_stream, left_out_head
from ftkit.models.streaming.table import left_out_table, table_to_stream
from ftkit.models.structure.layers import transformer_layers

NUM_BUFFERS = 2
"""One layer computes while the next one comes."""
_ALIGNMENT = 64
"""Bytes: torch's allocator on a CPU aligns to as many, and matrix products may round by their address."""


@dataclass(frozen=True)
class Part:
    """The place of a tensor in a buffer.

    Attributes:
        name: of a constant of a 4-bit weight; empty for the weight itself.
        dtype: of its numbers.
        shape: of the tensor.
        offset: bytes from the start of the buffer.
    """

    name: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor takes."""
        return self.shape.numel() * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Bytes from the start of the buffer to where the next tensor may begin."""
        return self.offset + -(-self.num_bytes // _ALIGNMENT) * _ALIGNMENT

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the tensor's part of a buffer, in its type and shape.

        Args:
            buffer: uint8, one dimension.
        """
        return buffer[self.offset : self.offset + self.num_bytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Slot:
    """The place of a frozen weight in a buffer.

    Attributes:
        left_out: what it is.
        owner: the module that has the weight.
        own: the name of the weight in it.
        parts: the weight, and the constants of one in 4 bits.
    """

    left_out: LeftOut
    owner: nn.Module
    own: str
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """The name of the weight in the transformers model, before a method changes it."""
        return self.left_out.name

    @property
    def parameter(self) -> nn.Parameter:
        """The weight; outside the window it is a placeholder of one number, seen in the weight's shape."""
        return cast(nn.Parameter, getattr(self.owner, self.own))

    @property
    def is_packed(self) -> bool:
        """Whether the weight is in 4 bits."""
        return len(self.parts) > 1

    @property
    def num_bytes(self) -> int:
        """Bytes that the weight takes."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def whole_bytes(self) -> int:
        """Bytes that the weight takes in the type that it computes in, before it is packed."""
        state = getattr(self.parameter, "quant_state", None)
        return self.num_bytes if state is None else state.shape.numel() * state.dtype.itemsize

    def views(self, buffer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the parts of a buffer that the weight and its constants lie in."""
        return tuple(part.view(buffer) for part in self.parts)

    def show(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let the weight and its constants be some tensors."""
        weight: Any = self.parameter
        weight.data = tensors[0]
        if self.is_packed:
            bnb.set_state_tensors(weight.quant_state, tensors[1:])

    def write(self, stored: torch.Tensor, buffer: torch.Tensor) -> None:
        """Write a weight into its part of a buffer on the CPU, packed where it is in 4 bits.

        Args:
            stored: the whole weight as its file holds it.
            buffer: uint8, one dimension.
        """
        state = getattr(self.parameter, "quant_state", None)
        made: tuple[torch.Tensor, ...] = (stored,)
        if state is not None:
            turned = stored.t() if self.left_out.is_transposed else stored
            made = bnb.packed_tensors(turned.to(state.dtype).contiguous(), self.parameter)
        for part, tensor in zip(self.parts, made, strict=True):
            part.view(buffer).copy_(tensor)


@dataclass(frozen=True)
class Layout:
    """All that is streamed of a model.

    Attributes:
        layers: the weights of each layer, in the order in which the layers run; behind them those of the head.
        num_buffers: of the window.
        has_head: whether the last of the layers is the head.
    """

    layers: tuple[tuple[Slot, ...], ...]
    num_buffers: int = NUM_BUFFERS
    has_head: bool = False

    @property
    def num_layers(self) -> int:
        """The layers, and the number by which the head is asked for."""
        return len(self.layers) - self.has_head

    @property
    def slots(self) -> Iterator[Slot]:
        """All weights."""
        return (slot for layer in self.layers for slot in layer)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a buffer: those of the largest layer."""
        return max(map(self.bytes_of, range(self.num_layers)))

    @property
    def head_bytes(self) -> int:
        """Bytes of the head; 0 where it stays."""
        return self.bytes_of(self.num_layers) if self.has_head else 0

    @property
    def window_bytes(self) -> int:
        """Bytes of all buffers: what streamed layers take of the device, however many there are."""
        return max(self.num_buffers * self.buffer_bytes, self.head_bytes)

    @property
    def streamed_bytes(self) -> int:
        """Bytes of all weights that are streamed: what is read in a pass over the layers."""
        return sum(slot.num_bytes for slot in self.slots)

    @property
    def is_packed(self) -> bool:
        """Whether some of the weights are in 4 bits, which their files do not hold."""
        return any(slot.is_packed for slot in self.slots)

    def slot_of(self, weight: torch.Tensor) -> Slot | None:
        """Return the place of a weight; None where it is not streamed through the window."""
        return next((slot for slot in self.slots if slot.parameter is weight), None)

    def layer_of(self, slot: Slot) -> int:
        """Return the number of the layer that a weight is of."""
        return next(number for number, slots in enumerate(self.layers) if slot in slots)

    def bytes_of(self, layer: int) -> int:
        """Return the bytes of a buffer that a layer takes."""
        slots = self.layers[layer]
        return slots[-1].parts[-1].end if slots else 0


def leave_out(model: nn.Module, names: Sequence[str]) -> None:
    """Put a placeholder in the place of each weight that is streamed.

    Args:
        model: a transformers model in which these weights are on `meta`, before a method changes it; changed in place.
        names: of the weights, as `names_to_stream` returned them.

    Raises:
        ModelError: the model has no layers with weights of their own, or they cannot recompute.
    """
    kind = type(model).__name__
    if not _names_of_layers(model):
        raise ModelError(f"{kind} has no list of layers with weights of their own; leave engine.stream_layers out")
    if not foreign.checkpointing_layers(model):
        raise ModelError(f"{kind} cannot recompute its layers, as streamed ones do; leave engine.stream_layers out")
    # Where the other weights are; on `meta` for a model that is only planned.
    device = next((one.device for one in model.parameters() if not one.is_meta), torch.device("meta"))
    places = defaultdict(list)
    for name, one in model.named_parameters(remove_duplicate=False):
        places[one].append(name.rpartition("."))
    for name in names:
        weight = model.get_parameter(name)
        new = nn.Parameter(placeholder(weight.shape, weight.dtype, device), requires_grad=False)
        mark(new, LeftOut(name))
        for owner, _, own in places[weight]:  # two, where the table is the head too: it stays one weight
            model.get_submodule(owner).register_parameter(own, new)


def layout_of(model: nn.Module) -> Layout:
    """Return the place of each weight that was left out.

    Args:
        model: prepared for its method, after `leave_out`.

    Raises:
        ModelError: the method holds a weight that was left out where nothing would bring it.
    """
    found = transformer_layers(model)
    assert found is not None
    layers, head = tuple(tuple(_slots(layer)) for layer in found[1]), left_out_head(model)
    num_buffers = min(NUM_BUFFERS, len(layers))
    if head is None:
        layout = Layout(layers, num_buffers)
    else:
        layout = Layout((*layers, tuple(_slots(head))), num_buffers, has_head=True)
    _check_brought(model, layout)
    return layout


def names_to_stream(model: nn.Module, *, table_grows: bool, with_head: bool) -> list[str]:
    """Return the names of the weights that are streamed: of the layers, and of the table of tokens where it can be.

    Args:
        model: a transformers model.
        table_grows: whether the table gets new rows, which train: it stays, and so does the head.
        with_head: whether the head is streamed too.

    Raises:
        ModelError: the head is to be streamed and gets new rows.
    """
    if table_grows and with_head:
        raise ModelError("new rows of the head train; leave engine.stream_head or model.resize_embeddings out")
    table = None if table_grows else table_to_stream(model, is_head=with_head)
    head = head_to_stream(model) if with_head else None
    return [*_names_of_layers(model), *dict.fromkeys(name for name in (table, head) if name is not None)]


def _names_of_layers(model: nn.Module) -> list[str]:
    """Return the names of the weights of a model's layers; what is shared with another module stays."""
    found = transformer_layers(model)
    if found is None:
        return []
    owners = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    prefix, layers = found
    return [f"{prefix}.{name}" for name, one in layers.named_parameters() if owners[id(one)] == 1]


def _check_brought(model: nn.Module, layout: Layout) -> None:
    """Refuse a module whose weight was left out and that is in no layer, nor the head or the table: nothing brings it.

    Modules are asked, not weights: a head that is the table too shares it, and an adapter hides only one of the two.
    """
    table = left_out_table(model)
    brought = {(id(slot.owner), slot.own) for slot in layout.slots} | {(id(table), "weight")}
    for path, module in model.named_modules():
        for own, weight in module.named_parameters(recurse=False):
            mark_of = left_out(weight)
            if mark_of is not None and (id(module), own) not in brought:
                name = path.removesuffix(".base_layer").rpartition(".")[2]  # PEFT's name for what an adapter is put on
                raise ModelError(
                    f"method.targets puts an adapter on {name}, so {mark_of.name} cannot be streamed; take {name} out "
                    "of method.targets, or leave engine.stream_head out"
                )


def _slots(layer: nn.Module) -> Iterator[Slot]:
    """Yield the weights of a layer that were left out, one behind the other."""
    end = 0
    for module in layer.modules():
        for own, weight in module.named_parameters(recurse=False):
            mark_of = left_out(weight)
            if mark_of is not None:
                parts = tuple(_parts(weight, end))
                end = parts[-1].end
                yield Slot(mark_of, module, own, parts)


def _parts(weight: torch.Tensor, offset: int) -> Iterator[Part]:
    """Yield the places of a weight and of its constants."""
    state = getattr(weight, "quant_state", None)
    tensors = {"": weight} | ({} if state is None else bnb.state_tensors(state))
    for name, one in tensors.items():
        part = Part(name, one.dtype, one.shape, offset)
        offset = part.end
        yield part
