"""Layers in 4 bits on a disk: packed once, kept in the cache folder by their content, and read into the window.

packed/3f/3f0c..-<sha256>.safetensors    the image of one layer; its name vouches for its content
"""

import hashlib
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import save_file

from ftkit.machine.disk import CACHE_VARIABLE, explained_writing, flush
from ftkit.machine.kept_files import KeptFiles
from ftkit.models import bnb
from ftkit.models.pinned import pinned
from ftkit.models.sources.positions import PositionFile
from ftkit.models.streaming.images import image_of
from ftkit.models.streaming.layout import Layout, Slot
from ftkit.models.streaming.stored import StoredWeights, explained_reading

PACKED = "packed"
"""The folder in the cache folder."""
_IMAGE = "layer"
"""The name of the one tensor in a file."""
_FORMAT = 1


class KeptLayers:
    """Reads the images of layers out of files that are made where they are not there yet.

    Attributes:
        folder: of the files.
        num_bytes: of all layers.
        num_made: how many of them had to be packed.
    """

    def __init__(self, stored: StoredWeights, layout: Layout, limit: int) -> None:
        """Find the layers, and pack what is not found, one layer at a time.

        Args:
            stored: the files that the model came in; they are read whole, for what they hold decides what is found.
            layout: what is streamed.
            limit: bytes that layers of other models may have beside these; those not used for longest make room.

        Raises:
            ModelError: a weight cannot be read.
            DeviceError: the disk is full or not writable.
        """
        self._layout, self.num_made = layout, 0
        self.num_bytes = sum(map(layout.bytes_of, range(len(layout.layers))))
        kept = KeptFiles(PACKED, limit + self.num_bytes)
        self.folder = kept.folder
        self._files = [self._open(kept, stored, layer) for layer in range(len(layout.layers))]
        self._staging: torch.Tensor | None = None

    def read_into(self, layer: int, memory: torch.Tensor) -> None:
        """Read a layer; to another device than the CPU it goes through pinned memory of the host."""
        size = self._layout.bytes_of(layer)
        with explained_reading():
            if memory.device.type == "cpu":
                self._files[layer].read_into(_IMAGE, memory[:size])
                return
            if self._staging is None:
                self._staging = pinned(self._layout.buffer_bytes)
            self._files[layer].read_into(_IMAGE, self._staging[:size])
        # Blocking, so that the next layer does not come into the staging while this one leaves it.
        memory[:size].copy_(self._staging[:size])

    def read(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        """Return one weight and its constants."""
        layer = self._layout.layer_of(slot)
        with explained_reading():
            return slot.views(self._files[layer].read(_IMAGE))

    def _open(self, kept: KeptFiles, stored: StoredWeights, layer: int) -> PositionFile:
        key = _key(self._layout.layers[layer], stored)
        with explained_writing(kept.folder, f"set {CACHE_VARIABLE} to a folder on another disk, or stream from ram"):
            found = kept.find(key)
            if found is None:
                self.num_made += 1
                found = kept.put(key, partial(_write, image_of(self._layout, layer, stored)))
            try:
                return PositionFile(found)  # from now on another run may remove the name, and this one reads on
            except FileNotFoundError:  # one that has just made room
                return self._open(kept, stored, layer)


def _write(image: torch.Tensor, aside: Path) -> None:
    save_file({_IMAGE: image}, aside)
    flush(aside)


def _key(slots: tuple[Slot, ...], stored: StoredWeights) -> str:
    """Return the digest of all that decides an image: what is stored, where it goes, how and on what it is packed."""
    packer = metadata.version("bitsandbytes"), bnb.packer(torch.device("cpu")).type
    digest = hashlib.sha256(repr((_FORMAT, packer)).encode())
    for slot in slots:
        weight, whole = slot.parameter, stored.read(slot.name)
        packing = [getattr(weight, name, None) for name in ("quant_type", "blocksize", "compress_statistics")]
        digest.update(
            repr((slot.parts, slot.left_out.is_transposed, packing, whole.dtype, tuple(whole.shape))).encode()
        )
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
