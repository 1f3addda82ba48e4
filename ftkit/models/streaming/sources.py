"""Read the weights of streamed layers from a disk or from the host's memory; for plans, read nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import nn

from ftkit.errors import ModelError
from ftkit.models.sources.positions import PositionFile
from ftkit.models.sources.source import Source, explained_loading
from ftkit.models.sources.stored import names_in_files, weight_paths
from ftkit.models.streaming.layout import Layout, Slot


class LayerSource(Protocol):
    """Gives the weights of a layer."""

    def read_into(self, layer: Sequence[Slot], tensors: Sequence[torch.Tensor]) -> None:
        """Write the weights of a layer into a buffer; called by one thread at a time, not always the same.

        Args:
            layer: what to read.
            tensors: the parts of the buffer for it, one for each slot, on the device.
        """


class NoValues:
    """Gives nothing: tensors of a plan have no values."""

    def read_into(self, layer: Sequence[Slot], tensors: Sequence[torch.Tensor]) -> None:
        """Do nothing."""


class StoredLayers:
    """Reads weights by position out of the safetensors that the model came in.

    What is stored in another type than the run computes in, and what goes to another device than the CPU, passes
    through a tensor of the host's memory; `staging_bytes` is its size once it is there.
    """

    def __init__(self, files: Mapping[str, PositionFile], names: Mapping[str, str]) -> None:
        """Read from open files.

        Args:
            files: the open files by the names of their tensors.
            names: of the tensors in these files, by their names in the model.
        """
        self._files, self._names = files, names
        self._staging = torch.empty(0, dtype=torch.uint8)

    @property
    def staging_bytes(self) -> int:
        """Bytes of host memory that the source keeps for itself."""
        return self._staging.numel()

    def read_into(self, layer: Sequence[Slot], tensors: Sequence[torch.Tensor]) -> None:
        """Read the weights of a layer, all of which the system is told of first."""
        with _explained_reading():
            for slot in layer:
                self._file(slot).expect(self._names[slot.name])
            for slot, tensor in zip(layer, tensors, strict=True):
                self._read(slot, tensor)

    def read(self, slot: Slot) -> torch.Tensor:
        """Return one weight on the CPU, in the type that the run computes in."""
        with _explained_reading():
            return self._file(slot).read(self._names[slot.name]).to(slot.parameter.dtype)

    def stored_dtypes(self, layout: Layout) -> set[torch.dtype]:
        """Return the types that the weights of some layers are stored in."""
        return {self._file(slot).places[self._names[slot.name]].dtype for layer in layout.layers for slot in layer}

    def _file(self, slot: Slot) -> PositionFile:
        return self._files[self._names[slot.name]]

    def _read(self, slot: Slot, tensor: torch.Tensor) -> None:
        file, name = self._file(slot), self._names[slot.name]
        place = file.places[name]
        if tensor.device.type == "cpu" and tensor.dtype == place.dtype:
            file.read_into(name, tensor)
            return
        if self._staging.numel() < place.num_bytes:
            self._staging = torch.empty(place.num_bytes, dtype=torch.uint8)
        staged = self._staging[: place.num_bytes].view(place.dtype)
        file.read_into(name, staged)
        tensor.copy_(staged.view(place.shape))


class HostLayers:
    """Keeps the weights of all layers in the host's memory, pinned where the system allows it."""

    def __init__(self, source: StoredLayers, layout: Layout) -> None:
        """Read all layers once, one at a time."""
        self._weights = {slot.name: _pinned(source.read(slot)) for layer in layout.layers for slot in layer}
        self._stored = source

    @property
    def is_pinned(self) -> bool:
        """Whether copies run beside the computation: those out of pageable memory do not."""
        return all(one.is_pinned() for one in self._weights.values())

    def read_into(self, layer: Sequence[Slot], tensors: Sequence[torch.Tensor]) -> None:
        """Begin to copy the weights of a layer to the device."""
        for slot, tensor in zip(layer, tensors, strict=True):
            tensor.copy_(self._weights[slot.name], non_blocking=True)

    def read(self, slot: Slot) -> torch.Tensor:
        """Return one weight on the CPU."""
        return self._weights[slot.name]


def open_layers(
    place: str, source: Source, model: nn.Module, layout: Layout, note: Callable[[str], None]
) -> StoredLayers | HostLayers:
    """Open the safetensors of a model for its streamed layers.

    Args:
        place: `disk` or `ram`, where the weights are while the run goes on.
        source: where the model is.
        model: the transformers model, before a method changes it; what it calls its tensors.
        layout: what is streamed of it.
        note: told what the stream costs beside the copies.

    Returns:
        What reads them.

    Raises:
        ModelError: the files are not there or damaged, or hold a weight in another form than the model does.
    """
    with explained_loading(source, "weights"):
        opened = [PositionFile(path) for path in weight_paths(source)]
    files = {name: file for file in opened for name in file.places}
    names = names_in_files(model, files)
    for slot in (slot for layer in layout.layers for slot in layer):
        shape = files[names[slot.name]].places[names[slot.name]].shape if slot.name in names else None
        if shape != tuple(slot.parameter.shape):
            found = "is not among them" if shape is None else f"has the shape {list(shape)} there"
            raise ModelError(
                f"the layers of {source.name} cannot be streamed: each weight is read as its files hold it, and "
                f"{slot.name} of the shape {list(slot.parameter.shape)} {found}; leave engine.stream_layers out"
            )
    stored = StoredLayers(files, names)
    converted = stored.stored_dtypes(layout) - {slot.parameter.dtype for layer in layout.layers for slot in layer}
    if converted and place == "disk":
        kinds = ", ".join(sorted(str(one).removeprefix("torch.") for one in converted))
        note(f"streamed layers are stored as {kinds} and computed in another type, so they are converted each time")
    return HostLayers(stored, layout) if place == "ram" else stored


@contextmanager
def _explained_reading() -> Iterator[None]:
    """Turn an error of reading while a run goes on into a sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"a layer cannot be read: {error}. The files of a model have to stay as they are while its layers are "
            "streamed; put them back, and go on with the run (output.resume=auto)"
        ) from error


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in memory that the system does not page out; the tensor itself where it refuses that, as WSL."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor
