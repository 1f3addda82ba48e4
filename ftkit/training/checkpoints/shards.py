"""The files of a checkpoint that no host holds whole: each rank writes its parts of what ZeRO-3 has partitioned.

    checkpoints/step-00000008/   shard-00000-of-00002.safetensors shard-00001-of-00002.safetensors
                                 state.json manifest.json

A file holds flat parts, and says in its table from where in which tensor each of them comes. Whoever reads them, on any
number of ranks, puts one tensor together at a time.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ftkit.engine.protocol import Parts
from ftkit.errors import CheckpointError
from ftkit.models.saving.write import write_file

Check = Callable[[str, torch.Tensor], None]
_PATTERN = "shard-*.safetensors"
_TABLE = "parts"
"""The key of a file's metadata."""


def write_own(folder: Path, rank: int, world_size: int, groups: Mapping[str, Parts], check: Check) -> None:
    """Write the parts of this rank, holding one of them at a time, and read them back.

    Args:
        folder: of the checkpoint.
        rank: of this process.
        world_size: ranks that write.
        groups: `weight` and `moment`, each with the parts of its tensors.
        check: is told the name and the numbers of each part, and raises where they are not finite.

    Raises:
        DivergedError: a number is not finite.
        CheckpointError: what was read back is not what was written.
        OSError: the disk is full or not writable.
    """
    parts = {f"{group}/{name}": one for group, some in groups.items() for name, one in some.items() if one.numel}

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        for name, part in parts.items():
            tensor = part.read()
            check(name, tensor)
            yield name, tensor

    path = folder / f"shard-{rank:05}-of-{world_size:05}.safetensors"
    table = {name: (part.offset, part.shape) for name, part in parts.items()}
    kinds = {name: (torch.float32, (part.numel,)) for name, part in parts.items()}
    write_file(path, kinds, read(), {_TABLE: json.dumps(table)})
    with safe_open(path, framework="pt") as file:
        for name, part in parts.items():
            if not torch.equal(file.get_tensor(name), part.read()):
                raise CheckpointError(f"{path} is not what was written ({name} differs); the disk or the memory fails")


class _Place(NamedTuple):
    """A part of a tensor: from where in it, and the open file that has it."""

    offset: int
    file: Any


class Sharded(Mapping[str, torch.Tensor]):
    """Tensors whose parts lie in several files; each is put together whenever it is asked for."""

    def __init__(self, group: str, shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, list[_Place]]) -> None:
        """Take the shapes of the whole tensors, and where their parts are, in their order."""
        self._group, self._shapes, self._places = group, shapes, places

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a whole tensor."""
        parts = [place.file.get_tensor(f"{self._group}/{name}") for place in self._places[name]]
        return torch.cat(parts).view(self._shapes[name])

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a tensor, without reading it."""
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._shapes)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the tensors, none of which is read."""
        return self._shapes


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of tensors by their names; shards are not read for it."""
    return tensors.shapes if isinstance(tensors, Sharded) else {name: tuple(one.shape) for name, one in tensors.items()}


def is_sharded(folder: Path) -> bool:
    """Return whether a checkpoint was written by each rank for itself."""
    return any(folder.glob(_PATTERN))


def read_shards(folder: Path, group: str, cure: str) -> Sharded:
    """Open the shards of a checkpoint.

    Args:
        folder: of the checkpoint, whose files are those of its manifest.
        group: `weight` or `moment`.
        cure: what the user could do, for an error.

    Raises:
        CheckpointError: a file is not one of ours, or the parts of a tensor are not all there.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, list[_Place]] = defaultdict(list)
    try:
        for path in sorted(folder.glob(_PATTERN)):
            file: Any = safe_open(path, framework="pt")
            for key, (offset, shape) in json.loads(file.metadata()[_TABLE]).items():
                of, _, name = key.partition("/")
                if of == group:
                    shapes[name] = tuple(shape)
                    places[name].append(_Place(offset, file))
        for name, shape in shapes.items():
            places[name].sort(key=lambda place: place.offset)
            _check_whole(f"{group}/{name}", math.prod(shape), places[name])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} has shards that do not make a whole ({error}); {cure}") from None
    return Sharded(group, shapes, dict(places))


def _check_whole(key: str, numel: int, places: list[_Place]) -> None:
    """Refuse parts between which numbers are missing or stand twice."""
    end = 0
    for place in places:
        if place.offset != end:
            raise ValueError(f"{key} has {end} numbers and goes on at {place.offset}")
        end += place.file.get_slice(key).get_shape()[0]
    if end != numel:
        raise ValueError(f"{key} has {end} of {numel} numbers")
