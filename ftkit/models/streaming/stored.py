"""The weights that are left out of a model, in the safetensors that it came in."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from ftkit.errors import ModelError
from ftkit.models.left_out import left_out
from ftkit.models.sources.positions import Place, PositionFile
from ftkit.models.sources.source import Source, explained_loading
from ftkit.models.sources.stored import names_in_files, weight_paths


class StoredWeights:
    """Weights in open files, read by position."""

    def __init__(self, files: Mapping[str, PositionFile], names: Mapping[str, str]) -> None:
        """Read from open files.

        Args:
            files: the open files by the names of their tensors.
            names: of the tensors in these files, by their names in the model.
        """
        self._files, self._names = files, names

    def place(self, name: str) -> Place:
        """Return the place of a weight in its file."""
        return self._files[self._names[name]].places[self._names[name]]

    def expect(self, names: Sequence[str]) -> None:
        """Tell the system that some weights are read next."""
        with explained_reading():
            for name in names:
                self._files[self._names[name]].expect(self._names[name])

    def read_into(self, name: str, tensor: torch.Tensor) -> None:
        """Read a weight into memory on the CPU, of the type that it is stored in."""
        with explained_reading():
            self._files[self._names[name]].read_into(self._names[name], tensor)

    def read_rows(self, name: str, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return rows of a weight on the CPU, as they are stored; their numbers ascend."""
        with explained_reading():
            return self._files[self._names[name]].read_rows(self._names[name], rows)

    def read(self, name: str) -> torch.Tensor:
        """Return a weight on the CPU, as it is stored."""
        with explained_reading():
            return self._files[self._names[name]].read(self._names[name])


def open_weights(source: Source, model: nn.Module) -> StoredWeights:
    """Open the safetensors of a model for the weights that are left out of it.

    Args:
        source: where the model is.
        model: the transformers model, before a method changes it; what it calls its tensors.

    Raises:
        ModelError: the files are not there or damaged, or hold a weight in another form than the model does.
    """
    with explained_loading(source, "weights"):
        opened = [PositionFile(path) for path in weight_paths(source)]
    files = {name: file for file in opened for name in file.places}
    names = names_in_files(model, files)
    for name, weight in model.named_parameters():
        if left_out(weight) is None:
            continue
        shape = files[names[name]].places[names[name]].shape if name in names else None
        if shape != tuple(weight.shape):
            found = "is not among them" if shape is None else f"has the shape {list(shape)} there"
            raise ModelError(
                f"the layers of {source.name} cannot be streamed: each weight is read as its files hold it, and "
                f"{name} of the shape {list(weight.shape)} {found}; leave engine.stream_layers out"
            )
    return StoredWeights(files, names)


@contextmanager
def explained_reading() -> Iterator[None]:
    """Turn an error of reading while a run goes on into a sentence.

    Raises:
        ModelError: what cannot be read, and what to do.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"a layer cannot be read: {error}. The files of a model have to stay as they are while its layers are "
            "streamed; put them back, and go on with the run (output.resume=auto)"
        ) from error
