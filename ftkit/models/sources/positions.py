"""Safetensors files read by position: a tensor at a time, straight into memory that is already there.

safetensors' own reader maps the file, so that pages which the system could drop count as the process's memory, and a
limit on its address space counts the whole file. Here a process holds what it has asked for and nothing else.

Source: the format, https://github.com/huggingface/safetensors#format.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""As safetensors and torch call the types of numbers."""
_LARGEST_HEADER = 100_000_000
"""The limit of safetensors' own reader; a larger one means that this is another kind of file."""


@dataclass(frozen=True)
class Place:
    """The place of a tensor in a file.

    Attributes:
        dtype: of its numbers.
        shape: of the tensor.
        offset: of its first byte.
        num_bytes: that it takes.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class PositionFile:
    """An open safetensors file."""

    def __init__(self, path: Path | str) -> None:
        """Open a file and read where its tensors lie.

        Raises:
            SafetensorError: it is truncated or not of this format.
            OSError: it cannot be opened.
        """
        self.path = Path(path)
        self._file = os.open(path, os.O_RDONLY)
        self.places: Mapping[str, Place] = _places(self._file, self.path)

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            os.close(self._file)

    def expect(self, name: str) -> None:
        """Tell the system that a tensor is read next, so that several of them come from the disk at once."""
        place = self.places[name]
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._file, place.offset, place.num_bytes, os.POSIX_FADV_WILLNEED)

    def read_into(self, name: str, tensor: torch.Tensor) -> None:
        """Read a tensor into memory of its own type.

        Args:
            name: of the stored tensor.
            tensor: contiguous, on the CPU, of the stored type and as many numbers; overwritten.

        Raises:
            SafetensorError: the file ends before the tensor does.
        """
        place = self.places[name]
        assert tensor.dtype == place.dtype, name
        assert tensor.numel() * tensor.itemsize == place.num_bytes, name
        self._fill(tensor, place.offset, name)

    def _fill(self, tensor: torch.Tensor, offset: int, name: str) -> None:
        rest = tensor.reshape(-1).view(torch.uint8).numpy().data
        while rest:
            count = os.preadv(self._file, [rest], offset)
            if count == 0:
                raise SafetensorError(f"{self.path} ends inside {name}: it was cut off since it was opened")
            rest, offset = rest[count:], offset + count

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor as it is stored."""
        place = self.places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        self.read_into(name, tensor)
        return tensor

    def read_rows(self, name: str, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return rows of a tensor as they are stored, in the order of their numbers.

        Args:
            name: of the stored tensor.
            rows: their numbers, from the lowest to the highest.

        Raises:
            IndexError: the tensor does not have such a row.
            SafetensorError: the file ends before a row does.
        """
        place = self.places[name]
        if len(rows) and not 0 <= rows[0] <= rows[-1] < place.shape[0]:
            raise IndexError(f"{name} has {place.shape[0]} rows, and {rows[0]} to {rows[-1]} are wanted")
        found = torch.empty((len(rows), *place.shape[1:]), dtype=place.dtype)
        size = place.num_bytes // place.shape[0]
        for row, tensor in zip(rows.tolist(), found, strict=True):
            self._fill(tensor, place.offset + row * size, name)
        return found

    # What transformers asks of an open file and of a part of it.

    def __exit__(self, *_: Any) -> None:
        """Do nothing: the file is closed when nobody has it."""

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self.places)

    def get_slice(self, name: str) -> "Unread":
        """Return a tensor that is read when it is asked for."""
        return Unread(self, name)


@dataclass(frozen=True)
class Unread:
    """A tensor of a file that has not been read."""

    file: PositionFile
    name: str

    def get_shape(self) -> list[int]:
        """Return its shape."""
        return list(self.file.places[self.name].shape)

    def __getitem__(self, _: Any) -> torch.Tensor:
        """Return the whole tensor: transformers asks for `[...]` alone."""
        return self.file.read(self.name)


def _places(file: int, path: Path) -> dict[str, Place]:
    """Read the header of a file and check that the file is as long as the header says."""
    size = os.fstat(file).st_size
    (length,) = struct.unpack("<Q", os.pread(file, 8, 0)) if size >= 8 else (_LARGEST_HEADER + 1,)
    if length > min(_LARGEST_HEADER, size - 8):
        raise SafetensorError(f"{path} is truncated, or not a safetensors file")
    try:
        header = json.loads(os.pread(file, length, 8))
        header.pop("__metadata__", None)
        places = {name: _place(one, 8 + length) for name, one in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafetensorError(f"the header of {path} is damaged, or of a type that torch does not have") from error
    end = max((place.offset + place.num_bytes for place in places.values()), default=0)
    if end > size:
        raise SafetensorError(f"{path} has {size} bytes of the {end} that its header tells of")
    return places


def _place(entry: Mapping[str, Any], start: int) -> Place:
    begin, end = entry["data_offsets"]
    return Place(DTYPES[entry["dtype"]], tuple(entry["shape"]), start + begin, end - begin)
