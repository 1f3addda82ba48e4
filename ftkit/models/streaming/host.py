"""Streamed layers in the host's memory, and the table of tokens beside them: one copy for all ranks of a host.

They lie one behind the other: the layers, the head where it is streamed, and the table where it is not that head too.
"""

from functools import partial
from itertools import accumulate

import torch
from torch import nn

from ftkit.machine.host_memory import HostMemory, host_memory
from ftkit.machine.process import ProcessContext
from ftkit.machine.ranks import together
from ftkit.models.left_out import left_out
from ftkit.models.pinned import pin
from ftkit.models.streaming.images import image_of
from ftkit.models.streaming.layout import Layout, Slot
from ftkit.models.streaming.stored import StoredWeights


class HostLayers:
    """Keeps the weights of all layers in the host's memory, pinned where the system allows it.

    Attributes:
        table: of tokens, in the type that the run computes in; None where it stays in the model.
        is_pinned: whether copies run beside the computation: those out of pageable memory do not.
    """

    def __init__(
        self, stored: StoredWeights, layout: Layout, tokens: nn.Embedding | None, process: ProcessContext
    ) -> None:
        """Read all layers once, one at a time, and pack those that are in 4 bits; the ranks of a host share that.

        Args:
            stored: the files.
            layout: what is streamed.
            tokens: the table that was left out of the model; None: none was.
            process: the place of this process; every process of the job calls this.

        Raises:
            ModelError: a weight cannot be read, here or on another rank.
        """
        self._layout = layout
        self._starts = [0, *accumulate(map(layout.bytes_of, range(len(layout.layers))))]
        memory = host_memory(self._starts[-1] + table_bytes_beside(layout, tokens), process)
        self._memory = memory.bytes
        self.table = None if tokens is None else self._table(tokens.weight)
        together(process, partial(self._fill, memory, stored, tokens))
        self.is_pinned = pin(self._memory, self)

    def read_into(self, layer: int, memory: torch.Tensor) -> None:
        """Begin to copy the weights of a layer to the device."""
        image = self._image(layer)
        memory[: len(image)].copy_(image, non_blocking=True)

    def read(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        """Return one weight on the CPU."""
        return slot.views(self._image(self._layout.layer_of(slot)))

    def _image(self, layer: int) -> torch.Tensor:
        return self._memory[self._starts[layer] : self._starts[layer + 1]]

    def _table(self, weight: torch.Tensor) -> torch.Tensor:
        """Return where the table lies: behind the layers, or where the head is that it is too."""
        head = self._layout.slot_of(weight)
        if head is not None:
            return self.read(head)[0]
        return self._memory[self._starts[-1] :].view(weight.dtype).view(weight.shape)

    def _fill(self, memory: HostMemory, stored: StoredWeights, tokens: nn.Embedding | None) -> None:
        """Fill this rank's part of the memory: some of the layers, and on the first rank of a host the table."""
        for layer in range(memory.number, len(self._layout.layers), memory.num_sharers):
            self._image(layer).copy_(image_of(self._layout, layer, stored))
        mark = None if tokens is None else left_out(tokens.weight)
        if mark is not None and self.table is not None and memory.number == 0:
            self.table.copy_(stored.read(mark.name))


def table_bytes_beside(layout: Layout, tokens: nn.Embedding | None) -> int:
    """Return the bytes of a table of tokens that lies beside the layers: 0 where it is the head too, or stays.

    Args:
        layout: what is streamed.
        tokens: the table that was left out of the model; None: none was.
    """
    if tokens is None or layout.slot_of(tokens.weight) is not None:
        return 0
    return tokens.weight.numel() * tokens.weight.itemsize
