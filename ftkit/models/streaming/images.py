"""The image of a layer: its weights as they lie in a buffer, made out of the files that the model came in."""

import torch

from ftkit.models.streaming.layout import Layout
from ftkit.models.streaming.stored import StoredWeights


def image_of(layout: Layout, layer: int, stored: StoredWeights) -> torch.Tensor:
    """Read the weights of a layer, one at a time, and pack those that are in 4 bits.

    They are packed as those of a model that is loaded whole are, and on the same device, so the numbers are the same.

    Args:
        layout: what is streamed.
        layer: its number.
        stored: the files.

    Returns:
        uint8, one dimension, on the CPU.
    """
    image = torch.zeros(layout.bytes_of(layer), dtype=torch.uint8)  # zeros between the weights, too: it has a checksum
    for slot in layout.layers[layer]:
        slot.write(stored.read(slot.name), image)
    return image
