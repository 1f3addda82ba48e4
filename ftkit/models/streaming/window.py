"""The window: two buffers of one layer each, in which the weights of streamed layers lie while they are used.

    layers       0    1    2    3        forward: while 1 computes, 2 comes into the buffer that 0 was in
    buffers      A    B    A    B
    layers       3    2    1    0        backward: 3 and 2 are there still; while 2 is computed again, 1 comes
    buffers      B    A    B    A

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
    """The memory for one layer.

    Attributes:
        memory: uint8, one dimension.
        num_references: of its storage while nobody uses it.
        layer: the number of the layer in it, or on its way to it; None at first.
        generation: how often it has been filled.
        wait: until it is full.
        is_shown: whether the weights of its layer are views of it.
    """

    memory: torch.Tensor
    num_references: int
    layer: int | None = None
    generation: int = 0
    wait: Wait = field(default=lambda: None)
    is_shown: bool = False


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
        self._buffers = [_buffer(layout.buffer_bytes, device) for _ in range(layout.num_buffers)]
        self._lane = lane_for(self._buffers[0].memory)
        self._nothing: dict[torch.dtype, torch.Tensor] = {}
        for slot in layout.slots:
            self._put_placeholder(slot)

    @property
    def memory(self) -> tuple[torch.Tensor, ...]:
        """The buffers: uint8, one dimension each."""
        return tuple(buffer.memory for buffer in self._buffers)

    @property
    def layers(self) -> tuple[int | None, ...]:
        """The number of the layer in each buffer, or on its way there."""
        return tuple(buffer.layer for buffer in self._buffers)

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
        for buffer in self._buffers:
            buffer.wait()
            self._hide(buffer)
            buffer.layer = None

    def _holding(self, layer: int) -> _Buffer | None:
        return next((one for one in self._buffers if one.layer == layer), None)

    def _fill(self, layer: int) -> _Buffer:
        """Begin to fill the buffer whose use is longest ago."""
        buffer = self._buffers[0]
        buffer.wait()
        self._hide(buffer)
        held = num_references(buffer.memory.untyped_storage())
        if held > buffer.num_references:
            raise StaleWeightsError(
                f"layer {layer} is to come into the buffer of layer {buffer.layer}, and {held - buffer.num_references} "
                "tensors that were computed with still hold it: a layer did not recompute, or a product keeps its "
                "weight for the backward"
            )
        buffer.layer, buffer.generation = layer, buffer.generation + 1
        buffer.wait = self._lane.begin(partial(self._source.read_into, layer, buffer.memory))
        return buffer

    def _show(self, buffer: _Buffer) -> None:
        """Let the weights of a layer be views of its buffer."""
        assert buffer.layer is not None
        if not buffer.is_shown:
            for slot in self.layout.layers[buffer.layer]:
                slot.show(slot.views(buffer.memory))
            buffer.is_shown = True

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


def _buffer(num_bytes: int, device: torch.device) -> _Buffer:
    memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return _Buffer(memory, num_references(memory.untyped_storage()))
