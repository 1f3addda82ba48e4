"""The weights that are left out of a model, in the safetensors that it came in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from ftkit.errors import ModelError
from ftkit.models.left_out import left_out
from ftkit.models.sources.source import Source, explained_loading
from ftkit.models.sources.stored import Room, Stored, stored_by


@dataclass(frozen=True)
class StoredWeights:
    """Weights in open files; whatever cannot be read is one sentence.

    Attributes:
        stored: the files.
    """

    stored: Stored

    def expect(self, names: Sequence[str]) -> None:
        """Tell the system that some weights are read next."""
        with explained_reading():
            self.stored.expect(names)

    def read_into(self, name: str, tensor: torch.Tensor, room: Room) -> None:
        """Read a weight into memory; what is not stored as it lies there passes through `room`, a piece at a time."""
        with explained_reading():
            self.stored.read_into(name, tensor, room)

    def read_rows(self, name: str, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return rows of a weight on the CPU, as they are stored; their numbers ascend."""
        with explained_reading():
            return self.stored.read_rows(name, rows)

    def read(self, name: str) -> torch.Tensor:
        """Return a weight on the CPU, as it is stored."""
        with explained_reading():
            return self.stored.read(name)


def open_weights(source: Source, model: nn.Module) -> StoredWeights:
    """Open the safetensors of a model for the weights that are left out of it.

    Args:
        source: where the model is.
        model: the transformers model, before a method changes it; what it calls its tensors.

    Raises:
        ModelError: the files are not there or damaged, or hold a weight in a form that it cannot be read from.
    """
    with explained_loading(source, "weights"):
        stored = stored_by(source, model)
    for name, weight in model.named_parameters():
        if left_out(weight) is None:
            continue
        shape = stored.shape(name) if name in stored else None
        if shape != tuple(weight.shape):
            found = "is not among them" if shape is None else f"has the shape {list(shape)} there"
            raise ModelError(
                f"the layers of {source.name} cannot be streamed: each weight is read as its files hold it, whole or "
                f"in parts that are stacked or joined, and {name} of the shape {list(weight.shape)} {found}; leave "
                "engine.stream_layers out"
            )
    return StoredWeights(stored)


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
