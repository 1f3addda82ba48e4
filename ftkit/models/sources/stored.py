"""The weights of a model on the disk, read a tensor at a time by the names that the model itself has."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ftkit.errors import ModelError
from ftkit.models.sources.pieces import Piece, Pieces, pieces_in_files
from ftkit.models.sources.positions import PositionFile
from ftkit.models.sources.source import Source, explained_loading

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
Room = Callable[[int], torch.Tensor]
"""Returns so many bytes of the host's memory: uint8, one dimension."""


def _new_room(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


@dataclass(frozen=True)
class Stored:
    """The files of a model, and what in them each of its tensors is made of.

    Attributes:
        files: the open files, by the names of their tensors.
        made_of: by the names of tensors in the model; it lacks those that the files hold in another form.
    """

    files: Mapping[str, PositionFile]
    made_of: Mapping[str, Pieces]

    def __contains__(self, name: str) -> bool:
        """Return whether a tensor of the model can be read."""
        return name in self.made_of

    def lacks(self, names: Iterator[str]) -> list[str]:
        """Return which of these tensors of the model cannot be read."""
        return [name for name in names if name not in self]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.made_of[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the type that a tensor is stored in; one that holds the numbers of all its pieces."""
        return reduce(torch.promote_types, (file.places[one.stored].dtype for file, one in self._pieces(name)))

    def expect(self, names: Sequence[str]) -> None:
        """Tell the system that some tensors are read next."""
        for name in names:
            for file, piece in self._pieces(name):
                file.expect(piece.stored)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, as it is stored.

        Args:
            name: in the model.

        Raises:
            KeyError: it cannot be read; see `lacks`.
            SafetensorError: a file ends before the tensor does.
        """
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, tensor: torch.Tensor, room: Room = _new_room) -> None:
        """Read a tensor into memory that is there.

        Args:
            name: in the model.
            tensor: of its shape; overwritten.
            room: gives the memory that a piece passes through which is of another type, or goes to another device or
                to places that do not lie side by side.

        Raises:
            SafetensorError: a file ends before the tensor does.
        """
        for file, piece in self._pieces(name):
            part, place = piece.view(tensor), file.places[piece.stored]
            if part.device.type == "cpu" and part.dtype == place.dtype and part.is_contiguous():
                file.read_into(piece.stored, part)
                continue
            staged = room(place.num_bytes).view(place.dtype)
            file.read_into(piece.stored, staged)
            part.copy_(staged.view(part.shape))

    def read_rows(self, name: str, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return rows of a tensor on the CPU, as they are stored; their numbers ascend."""
        pieces = list(self._pieces(name))
        if len(pieces) > 1:
            return self.read(name)[torch.from_numpy(rows)]
        ((file, piece),) = pieces
        return file.read_rows(piece.stored, rows)

    def _pieces(self, name: str) -> Iterator[tuple[PositionFile, Piece]]:
        for piece in self.made_of[name].pieces:
            yield self.files[piece.stored], piece


@contextmanager
def open_stored(source: Source, model: nn.Module) -> Iterator[Stored]:
    """Open the safetensors files of a model.

    Args:
        source: where the model is; without a GGUF file.
        model: the transformers model itself, on `meta` or not; what it calls its tensors.

    Yields:
        The files. Tensors that they hold in a form from which transformers makes the model's lack in them.

    Raises:
        ModelError: there are no such files, or one of them is damaged.
    """
    with explained_loading(source, "weights"):
        stored = stored_by(source, model)
        if not stored.files:
            raise ModelError(f"{source.name} has no {_WHOLE}; give a model whose weights are safetensors")
        yield stored


def stored_by(source: Source, model: nn.Module) -> Stored:
    """Open the safetensors files of a model; they are closed when nobody has them.

    Args:
        source: where the model is; without a GGUF file.
        model: the transformers model itself, on `meta` or not.

    Raises:
        OSError, SafetensorError: a file cannot be opened or is damaged.
    """
    files = {name: file for path in weight_paths(source) for file in [PositionFile(path)] for name in file.places}
    return Stored(files, pieces_in_files(model, {name: file.places[name].shape for name, file in files.items()}))


def weight_paths(source: Source) -> Iterator[str]:
    """Yield the safetensors files of a model one by one, from a folder or from the hub's cache.

    Args:
        source: where the model is; without a GGUF file.

    Yields:
        One file, or those that the model's index names, in its order; none where there are no safetensors.

    Raises:
        ModelError: a file that the index names is not there.
    """
    from transformers.utils.hub import cached_file

    def path(name: str) -> str | None:
        found: str | None = cached_file(
            source.name, name, revision=source.revision, _raise_exceptions_for_missing_entries=False
        )
        return found

    whole, index = path(_WHOLE), path(_INDEX)
    if whole is not None:
        yield whole
    elif index is not None:
        for shard in dict.fromkeys(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()):
            found = path(shard)
            if found is None:
                raise ModelError(f"{source.name} has no {shard}, which its index names; copy or download it again")
            yield found
