"""Where the weights of streamed layers come from: a disk or the host's memory; for plans, from nowhere."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import nn

from ftkit.machine.process import ProcessContext
from ftkit.models.left_out import left_out
from ftkit.models.streaming.host import HostLayers
from ftkit.models.streaming.kept import KeptLayers
from ftkit.models.streaming.layout import Layout, Slot
from ftkit.models.streaming.stored import StoredWeights
from ftkit.models.streaming.table import HostTable, NoTable, StoredTable, TableSource
from ftkit.units import format_bytes


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


def in_ram(
    stored: StoredWeights,
    layout: Layout,
    tokens: nn.Embedding | None,
    process: ProcessContext,
    note: Callable[[str], None],
) -> tuple[LayerSource, TableSource]:
    """Return what gives the streamed layers of a run, and the rows of its table of tokens, out of the host's memory.

    Args:
        stored: the safetensors of the model.
        layout: what is streamed of it.
        tokens: the table that was left out of the model; None where it is there, and nobody asks for rows.
        process: the place of this process; every process of the job calls this.
        note: told what the stream costs beside the copies.

    Raises:
        ModelError: a weight cannot be read.
        DeviceError: the ranks of this host cannot share memory.
    """
    host = HostLayers(stored, layout, tokens, process)
    if torch.cuda.is_available() and not host.is_pinned:
        note("the system does not pin the host's memory, so computing waits for each layer that comes")
    return host, NoTable() if host.table is None else HostTable(host.table)


def on_disk(
    stored: StoredWeights,
    layout: Layout,
    tokens: nn.Embedding | None,
    limit: int,
    note: Callable[[str], None],
) -> tuple[LayerSource, TableSource]:
    """Return what gives the streamed layers of a run, and the rows of its table of tokens, out of files.

    Args:
        stored: the safetensors of the model.
        layout: what is streamed of it.
        tokens: the table that was left out of the model; None where it is there, and nobody asks for rows.
        limit: bytes that the cache may hold of packed layers beside these.
        note: told what the stream costs beside the copies.

    Raises:
        ModelError: a weight cannot be read.
        DeviceError: packed layers cannot be written.
    """
    mark = None if tokens is None else left_out(tokens.weight)
    table = NoTable() if tokens is None or mark is None else StoredTable(stored, mark.name, tokens.weight.dtype)
    whole = StoredLayers(stored, layout)
    if layout.is_packed:
        packed = replace(layout, layers=layout.layers[: layout.num_layers], has_head=False)
        kept = KeptLayers(stored, packed, limit)
        note(
            f"streamed layers in 4 bits, {format_bytes(kept.num_bytes)}, are read from {kept.folder}: {kept.num_made} "
            f"of {layout.num_layers} packed now"
        )
        return (PackedLayers(kept, whole, layout) if layout.has_head else kept), table
    converted = {stored.stored.dtype(slot.name) for slot in layout.slots} - {s.parts[0].dtype for s in layout.slots}
    if converted:
        kinds = ", ".join(sorted(str(one).removeprefix("torch.") for one in converted))
        note(f"streamed layers are stored as {kinds} and computed in another type, so they are converted each time")
    return whole, table
