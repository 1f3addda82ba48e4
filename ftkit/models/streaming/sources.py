"""Where the weights of streamed layers come from: a disk or the host's memory; for plans, from nowhere."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Protocol

import torch
from torch import nn

from ftkit.models.left_out import left_out
from ftkit.models.pinned import pinned
from ftkit.models.streaming.images import image_of
from ftkit.models.streaming.kept import KeptLayers
from ftkit.models.streaming.layout import Layout, Slot
from ftkit.models.streaming.stored import StoredWeights
from ftkit.models.streaming.table import HostTable, NoTable, StoredTable, TableSource, left_out_table
from ftkit.units import format_bytes

_PINNED_BYTES = 64 * 2**20
"""Of one block: torch's allocator of pinned memory rounds each up to a power of two, layers by up to as much again."""


class LayerSource(Protocol):
    """Gives the weights of a layer."""

    def read_into(self, layer: int, memory: torch.Tensor) -> None:
        """Write the weights of a layer into a buffer; called by one thread at a time, not always the same.

        Args:
            layer: its number.
            memory: uint8, the buffer, on the device.
        """

    def read(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        """Return a weight, and the constants of one in 4 bits, on the CPU as they compute."""


class NoLayers:
    """Gives nothing: tensors of a plan have no values."""

    def read_into(self, layer: int, memory: torch.Tensor) -> None:
        """Do nothing."""

    def read(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        """Return what the weight has instead of values."""
        raise NotImplementedError(slot.name)


class StoredLayers:
    """Reads weights by position out of the safetensors that the model came in.

    What is stored in another type than the run computes in, and what goes to another device than the CPU, passes
    through a tensor of the host's memory; `staging_bytes` is its size once it is there.
    """

    def __init__(self, stored: StoredWeights, layout: Layout) -> None:
        """Read from open files.

        Args:
            stored: the files.
            layout: what is streamed, none of it in 4 bits.
        """
        self._stored, self._layout = stored, layout
        self._staging = torch.empty(0, dtype=torch.uint8)

    @property
    def staging_bytes(self) -> int:
        """Bytes of host memory that the source keeps for itself."""
        return self._staging.numel()

    def read_into(self, layer: int, memory: torch.Tensor) -> None:
        """Read the weights of a layer, all of which the system is told of first."""
        slots = self._layout.layers[layer]
        self._stored.expect([slot.name for slot in slots])
        for slot in slots:
            (tensor,) = slot.views(memory)
            self._stored.read_into(slot.name, tensor, self._room)

    def read(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        """Return one weight on the CPU, in the type that the run computes in."""
        return (self._stored.read(slot.name).to(slot.parts[0].dtype),)

    def _room(self, num_bytes: int) -> torch.Tensor:
        """Return a part of the host's memory that the source keeps for itself."""
        if self._staging.numel() < num_bytes:
            self._staging = torch.empty(num_bytes, dtype=torch.uint8)
        return self._staging[:num_bytes]


class PackedLayers:
    """Gives layers in 4 bits out of the files that they were packed into, and the head out of the model's own."""

    def __init__(self, kept: KeptLayers, head: StoredLayers, layout: Layout) -> None:
        """Read from both.

        Args:
            kept: the packed layers.
            head: what gives the head, which is not packed.
            layout: of all of them.
        """
        self._kept, self._head, self._layout = kept, head, layout

    def read_into(self, layer: int, memory: torch.Tensor) -> None:
        """Read a layer, or the head."""
        self._source(layer).read_into(layer, memory)

    def read(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        """Return one weight and its constants."""
        return self._source(self._layout.layer_of(slot)).read(slot)

    def _source(self, layer: int) -> LayerSource:
        return self._head if layer == self._layout.num_layers else self._kept


class HostLayers:
    """Keeps the weights of all layers in the host's memory, pinned where the system allows it."""

    def __init__(self, stored: StoredWeights, layout: Layout) -> None:
        """Read all layers once, one at a time, and pack those that are in 4 bits.

        Args:
            stored: the files.
            layout: what is streamed.
        """
        self._layout = layout
        sizes = [layout.bytes_of(layer) for layer in range(len(layout.layers))]
        self._starts = [0, *accumulate(sizes)]
        self._blocks = [pinned(size) for size in _block_sizes(sum(sizes))]
        for layer in range(len(sizes)):
            image, place = image_of(layout, layer, stored), 0
            for piece in self._pieces(layer):
                piece.copy_(image[place : place + len(piece)])
                place += len(piece)

    @property
    def is_pinned(self) -> bool:
        """Whether copies run beside the computation: those out of pageable memory do not."""
        return all(one.is_pinned() for one in self._blocks)

    def read_into(self, layer: int, memory: torch.Tensor) -> None:
        """Begin to copy the weights of a layer to the device."""
        place = 0
        for piece in self._pieces(layer):
            memory[place : place + len(piece)].copy_(piece, non_blocking=True)
            place += len(piece)

    def read(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        """Return one weight on the CPU."""
        layer = self._layout.layer_of(slot)
        return slot.views(torch.cat(list(self._pieces(layer))))

    def _pieces(self, layer: int) -> Iterator[torch.Tensor]:
        """Yield the parts of blocks that a layer lies in, in their order."""
        begin, end = self._starts[layer], self._starts[layer + 1]
        while begin < end:
            block, place = divmod(begin, _PINNED_BYTES)
            piece = self._blocks[block][place : place + end - begin]
            yield piece
            begin += len(piece)


def layers_from(
    place: str, stored: StoredWeights, layout: Layout, limit: int, note: Callable[[str], None]
) -> LayerSource:
    """Return what gives the streamed layers of a run.

    Args:
        place: `disk` or `ram`, where the weights are while the run goes on.
        stored: the safetensors of the model.
        layout: what is streamed of it.
        limit: bytes that the cache may hold of packed layers beside these.
        note: told what the stream costs beside the copies.

    Raises:
        ModelError: a weight cannot be read.
        DeviceError: packed layers cannot be written.
    """
    if place == "ram":
        host = HostLayers(stored, layout)
        if torch.cuda.is_available() and not host.is_pinned:
            note("the system does not pin the host's memory, so computing waits for each layer that comes")
        return host
    if layout.is_packed:
        packed = replace(layout, layers=layout.layers[: layout.num_layers], has_head=False)
        kept = KeptLayers(stored, packed, limit)
        note(
            f"streamed layers in 4 bits, {format_bytes(kept.num_bytes)}, are read from {kept.folder}: {kept.num_made} "
            f"of {layout.num_layers} packed now"
        )
        return PackedLayers(kept, StoredLayers(stored, layout), layout) if layout.has_head else kept
    converted = {stored.stored.dtype(slot.name) for slot in layout.slots} - {s.parts[0].dtype for s in layout.slots}
    if converted:
        kinds = ", ".join(sorted(str(one).removeprefix("torch.") for one in converted))
        note(f"streamed layers are stored as {kinds} and computed in another type, so they are converted each time")
    return StoredLayers(stored, layout)


def table_from(place: str, stored: StoredWeights, model: nn.Module) -> TableSource:
    """Return what gives the rows of a run's table of tokens.

    Args:
        place: `disk` or `ram`, where the table is while the run goes on.
        stored: the safetensors of the model.
        model: prepared for its method; where its table is there, nobody asks for rows.
    """
    table = left_out_table(model)
    mark = None if table is None else left_out(table.weight)
    if table is None or mark is None:
        return NoTable()
    kind = HostTable if place == "ram" else StoredTable
    return kind(stored, mark.name, table.weight.dtype)


def _block_sizes(num_bytes: int) -> list[int]:
    """Return the sizes of blocks that hold some bytes, of which the last alone is not full."""
    full, rest = divmod(num_bytes, _PINNED_BYTES)
    return [_PINNED_BYTES] * full + [rest] * bool(rest)
