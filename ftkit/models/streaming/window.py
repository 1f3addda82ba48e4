"""The window: two buffers of one layer each, in which the weights of streamed layers lie while they are used.

    layers       0    1    2    3        forward: while 1 computes, 2 comes into the buffer that 0 was in
    buffers      A    B    A    B
    layers       3    2    1    0        backward: 3 and 2 are there still; while 2 is computed again, 1 comes
    buffers      B    A    B    A

A streamed head takes the place of all buffers when the topmost layer has run. They lie in one piece of memory then, as
large as the head or as they are, and the layers that it has taken the place of come again:

    layers       2    3   head   3    2        forward, the loss, backward
    buffers      A    B    AB    B    A

A frozen weight is a view of a buffer while its layer is in the window, and a placeholder of one number otherwise.
Whatever has kept a view of its own would read another layer's numbers once the buffer is used again: autograd's saved
tensors where a layer does not recompute, or a product that keeps its weight out of autograd's sight, as bitsandbytes'
MatMul4Bit does. Nothing would be seen but wrong gradients. So a buffer is used again only if nobody but the window
holds it, and a backward asks at its end whether its layer has been in the same buffer all along. The constants of a
weight in 4 bits lie in the buffer beside it: they come and go with it, in the one state that all who multiply by the
weight ask.
"""

from dataclasses import dataclass, field
from functools import partial

import torch

from ftkit.models.streaming.foreign import num_references
from ftkit.models.streaming.lanes import Wait, lane_for
from ftkit.models.streaming.layout import Layout, Slot
from ftkit.models.streaming.sources import LayerSource


class StaleWeightsError(RuntimeError):
    """Weights were used, or may yet be, out of a buffer that has another layer by then: a mistake of ftkit's."""


@dataclass(eq=False)
class _Buffer:
    """The memory for one layer, or for the head.

    Attributes:
        memory: uint8, one dimension.
        num_references: of its storage while nobody uses it.
        layer: the number of the layer in it, or on its way to it; None: it is empty.
        generation: how often it has been filled.
        wait: until it is full.
        is_shown: whether the weights of its layer are views of it.
        num_shown: references to its storage that they are then.
    """

    memory: torch.Tensor
    num_references: int
    layer: int | None = None
    generation: int = 0
    wait: Wait = field(default=lambda: None)
    is_shown: bool = False
    num_shown: int = 0

    def count(self) -> int:
        """Return how many tensors hold its storage."""
        return num_references(self.memory.untyped_storage())


class Window:
    """The buffers of a device, and which layer is in which."""

    def __init__(self, layout: Layout, source: LayerSource, device: torch.device) -> None:
        """Allocate the buffers, once, and put placeholders on the device in the place of the weights.

        Args:
            layout: what is streamed.
            source: where it comes from.
            device: what computes.
        """
        self.layout, self._source = layout, source
        self._buffers, self._whole = _buffers(layout, device)
        self._lane = lane_for(self.memory)
        self._nothing: dict[torch.dtype, torch.Tensor] = {}
        for slot in layout.slots:
            self._put_placeholder(slot)

    @property
    def memory(self) -> tuple[torch.Tensor, ...]:
        """The memory of the buffers: uint8, one dimension each."""
        buffers = self._buffers if self._whole is None else [self._whole]
        return tuple(buffer.memory for buffer in buffers)

    @property
    def layers(self) -> tuple[int | None, ...]:
        """The number of the layer in each buffer, or on its way there."""
        return tuple(buffer.layer for buffer in self._all)

    @property
    def fillings(self) -> tuple[int, ...]:
        """How often each buffer has been filled; that of the head comes last, where it is streamed."""
        return tuple(buffer.generation for buffer in self._all)

    @property
    def _all(self) -> list[_Buffer]:
        return [*self._buffers, *([] if self._whole is None else [self._whole])]

    def fetch(self, layer: int, then: int | None = None) -> None:
        """Have the weights of a layer be there, and let the next layer come meanwhile.

        Args:
            layer: its number; what computed before it is done with its own weights.
            then: the number of the layer that is wanted next; None: nothing is known of it.

        Raises:
            StaleWeightsError: something holds a buffer that is needed again.
            ModelError: the weights cannot be read.
        """
        # Views that are made in inference mode could not take part in a later backward.
        with torch.inference_mode(False):
            buffer = self._holding(layer) or self._fill(layer)
            buffer.wait()
            self._show(buffer)
            self._buffers.sort(key=lambda one: one is buffer)  # the one that was used last comes last
            if then is not None and then != layer and self._holding(then) is None and len(self._buffers) > 1:
                self._fill(then)

    def generation(self, layer: int) -> int | None:
        """Return which filling of its buffer a layer is in; None where it is not in the window."""
        buffer = self._holding(layer)
        return None if buffer is None else buffer.generation

    def release(self) -> None:
        """Put placeholders in the place of all weights in the window."""
        for buffer in self._all:
            buffer.wait()
            self._empty(buffer)

    def _empty(self, buffer: _Buffer) -> None:
        self._hide(buffer)
        buffer.layer = None

    def _holding(self, layer: int) -> _Buffer | None:
        return next((one for one in self._all if one.layer == layer), None)

    def _fill(self, layer: int) -> _Buffer:
        """Begin to fill the buffer whose use is longest ago, or with the head all of them."""
        buffer, leaving = self._room_for(layer)
        # A reader holds the memory, too; where a head is streamed, that of all buffers.
        for one in leaving if self._whole is None else self._all:
            one.wait()
        before = " and ".join(str(one.layer) for one in leaving if one.layer is not None)
        for one in leaving:
            self._empty(one)
        held = buffer.count() - self._num_shown()
        if held > buffer.num_references:
            raise StaleWeightsError(
                f"layer {layer} is to come into the buffer of layer {before}, and {held - buffer.num_references} "
                "tensors that were computed with still hold it: a layer did not recompute, or a product keeps its "
                "weight for the backward"
            )
        buffer.layer, buffer.generation = layer, buffer.generation + 1
        buffer.wait = self._lane.begin(partial(self._source.read_into, layer, buffer.memory))
        return buffer

    def _room_for(self, layer: int) -> tuple[_Buffer, list[_Buffer]]:
        """Return the buffer that a layer comes into, and all whose layers leave for it."""
        oldest = self._buffers[0]
        if self._whole is None:
            return oldest, [oldest]
        return (self._whole, self._buffers) if layer == self.layout.num_layers else (oldest, [oldest, self._whole])

    def _num_shown(self) -> int:
        """Return how often the weights that are shown refer to the memory that all buffers share; 0 where none do."""
        return 0 if self._whole is None else sum(one.num_shown for one in self._all if one.is_shown)

    def _show(self, buffer: _Buffer) -> None:
        """Let the weights of a layer be views of its buffer."""
        assert buffer.layer is not None
        if not buffer.is_shown:
            before = buffer.count()
            for slot in self.layout.layers[buffer.layer]:
                slot.show(slot.views(buffer.memory))
            buffer.is_shown, buffer.num_shown = True, buffer.count() - before

    def _hide(self, buffer: _Buffer) -> None:
        """Put placeholders in the place of the weights of a buffer."""
        if buffer.is_shown and buffer.layer is not None:
            for slot in self.layout.layers[buffer.layer]:
                self._put_placeholder(slot)
        buffer.is_shown = False

    def _put_placeholder(self, slot: Slot) -> None:
        """Let a weight and its constants be one number each, which all of a type share."""
        device = self._buffers[0].memory.device
        for part in slot.parts:
            if part.dtype not in self._nothing:
                self._nothing[part.dtype] = torch.empty((), dtype=part.dtype, device=device)
        slot.show([self._nothing[part.dtype].expand(part.shape) for part in slot.parts])


def _buffers(layout: Layout, device: torch.device) -> tuple[list[_Buffer], _Buffer | None]:
    """Allocate a buffer for each layer of the window; for a head that is streamed all of their memory is one too."""

    def memory(num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)

    size, numbers = layout.buffer_bytes, range(layout.num_buffers)
    if not layout.has_head:
        alone = [memory(size) for _ in numbers]
        return [_Buffer(one, num_references(one.untyped_storage())) for one in alone], None
    whole = memory(layout.window_bytes)
    parts = [whole[number * size : (number + 1) * size] for number in numbers]
    held = num_references(whole.untyped_storage())
    return [_Buffer(one, held) for one in parts], _Buffer(whole, held)
