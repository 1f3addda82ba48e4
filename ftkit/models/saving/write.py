"""Write safetensors a tensor at a time: what each is and how large is known before the first one comes.

`safetensors` writes a file from tensors that are all in memory. The format is a length, a table in JSON and the bytes
of the tensors one behind another (https://github.com/huggingface/safetensors#format), so that the table can be written
first; the library reads the result.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from ftkit.models.saving.dtypes import blocks
from ftkit.models.sources.positions import DTYPES

MAX_SHARD_BYTES = 5 * 10**9
"""Of one file, as transformers writes them."""
_TYPES = {dtype: name for name, dtype in DTYPES.items()}
_FORMAT = MappingProxyType({"format": "pt"})
_ALIGNMENT = 8
"""Bytes that the table ends at a multiple of, so that tensors can be mapped into memory."""


Kinds = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of each tensor, by its name."""


@dataclass(frozen=True)
class Place:
    """The place of a tensor among the files: which file, and from which byte of it."""

    file: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def write_tensors(
    folder: Path,
    kinds: Kinds,
    tensors: Iterable[tuple[str, torch.Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write tensors as transformers saves a model, holding one of them at a time.

    Args:
        folder: where to.
        kinds: dtype and shape of each tensor that is going to come, in the order of the files.
        tensors: all of them, in any order; rounded to these types as they are written.
        max_shard_bytes: of one file; a larger tensor has a file of its own.

    Returns:
        The bytes of all tensors.
    """
    shards = list(_shards(kinds, max_shard_bytes))
    places: dict[str, Place] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        places |= _write_table(folder / file, {name: kinds[name] for name in names})
    total = sum(_num_bytes(kind) for kind in kinds.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {name: place.file for name, place in places.items()}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _fill(folder, places, tensors)
    return total


def write_file(
    path: Path, kinds: Kinds, tensors: Iterable[tuple[str, torch.Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write one safetensors file, holding one of its tensors at a time.

    Args:
        path: the file.
        kinds: dtype and shape of each tensor that is going to come.
        tensors: all of them, in any order.
        metadata: texts that the file's table keeps.
    """
    _fill(path.parent, _write_table(path, kinds, metadata), tensors)


def _fill(folder: Path, places: Mapping[str, Place], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    written = set()
    for name, tensor in tensors:
        place = places[name]
        assert tuple(tensor.shape) == place.shape, name
        assert tensor.dtype == place.dtype or tensor.is_floating_point(), name
        with (folder / place.file).open("r+b") as file:
            file.seek(place.offset)
            # Not `tofile`, whose error of a full disk lacks the system's number, by which such a disk is known.
            file.writelines(blocks(tensor, place.dtype))
        written.add(name)
    assert written == places.keys(), places.keys() - written


def _shards(kinds: Kinds, most: int) -> Iterator[list[str]]:
    """Yield the names of each file's tensors."""
    names: list[str] = []
    size = 0
    for name, kind in kinds.items():
        if names and size + _num_bytes(kind) > most:
            yield names
            names, size = [], 0
        names.append(name)
        size += _num_bytes(kind)
    yield names


def _write_table(path: Path, kinds: Kinds, metadata: Mapping[str, str] = _FORMAT) -> dict[str, Place]:
    """Write the beginning of a file, make room for the rest, and return the places of its tensors."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in kinds.items():
        start, end = end, end + _num_bytes((dtype, shape))
        table[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        base = file.tell()
        file.truncate(base + end)
    offset = base
    places = {}
    for name, (dtype, shape) in kinds.items():
        places[name] = Place(path.name, offset, dtype, shape)
        offset += _num_bytes((dtype, shape))
    return places


def _num_bytes(kind: tuple[torch.dtype, tuple[int, ...]]) -> int:
    dtype, shape = kind
    return torch.Size(shape).numel() * dtype.itemsize
