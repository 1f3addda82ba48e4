"""The stored tensors that a weight of a model is made of, and where in the weight each of them lies.

transformers holds as one tensor what the files of some models have as many:

    in the model                         in the files
    mlp.experts.gate_up_proj[0, :64]     mlp.experts.0.gate_proj.weight
    mlp.experts.gate_up_proj[0, 64:]     mlp.experts.0.up_proj.weight
    mlp.experts.gate_up_proj[1, :64]     mlp.experts.1.gate_proj.weight

Each piece is read straight into its place. Where transformers does more than to stack tensors and to join them, such as
to take one apart or to turn it, there are no pieces.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ftkit.models.sources.foreign import Conversion, Operation, conversions


@dataclass(frozen=True)
class Piece:
    """A stored tensor, and the part of a weight that it is.

    Attributes:
        stored: the name of the tensor in its file.
        begin: of the part, along each dimension of the weight.
        shape: of the part; it is 1 along a dimension that tensors are stacked along.
    """

    stored: str
    begin: tuple[int, ...]
    shape: tuple[int, ...]

    def view(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the part of a weight."""
        for dim, (begin, length) in enumerate(zip(self.begin, self.shape, strict=True)):
            weight = weight.narrow(dim, begin, length)
        return weight


@dataclass(frozen=True)
class Pieces:
    """All that a weight is made of.

    Attributes:
        shape: of the weight.
        pieces: that fill it.
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def pieces_in_files(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Pieces]:
    """Return what the tensors of a model are made of, by their names in the model; those that have no pieces lack.

    Args:
        model: the transformers model itself, on `meta` or not.
        shapes: of the stored tensors, by their names in the files.
    """
    tensors = dict(_tensors(model))
    aliases: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        aliases.setdefault(id(tensor), []).append(name)
    stored = conversions(model, tensors, shapes)
    made = {name: one for name in stored if (one := _pieces(stored[name], shapes)) is not None}
    found = {}
    for name, tensor in tensors.items():
        known = next((one for one in (name, *aliases[id(tensor)]) if one in made), None)
        if known is not None:
            found[name] = made[known]
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _pieces(conversion: Conversion, shapes: Mapping[str, tuple[int, ...]]) -> Pieces | None:
    """Return what a tensor is made of; None where it is more than stacked and joined, or parts do not fit."""
    groups = [[_whole(name, shapes[name]) for name in names] for names in conversion.stored]
    for operation, dim in conversion.operations:
        if operation is Operation.OTHER:
            return None
        if operation is Operation.STACK:
            groups = [[_lifted(one, dim) for one in group] for group in groups]
        else:
            groups = [[one for group in groups for one in group]]
        if not all(_fit(group, dim) for group in groups):
            return None
        groups = [[_joined(group, dim)] for group in groups]
    return groups[0][0] if len(groups) == len(groups[0]) == 1 else None


def _whole(name: str, shape: tuple[int, ...]) -> Pieces:
    return Pieces(shape, (Piece(name, (0,) * len(shape), shape),))


def _lifted(whole: Pieces, dim: int) -> Pieces:
    """Return the same with one dimension more, along which it is stacked."""

    def lifted(sizes: tuple[int, ...], more: int) -> tuple[int, ...]:
        return (*sizes[:dim], more, *sizes[dim:])

    pieces = (replace(one, begin=lifted(one.begin, 0), shape=lifted(one.shape, 1)) for one in whole.pieces)
    return Pieces(lifted(whole.shape, 1), tuple(pieces))


def _fit(parts: Sequence[Pieces], dim: int) -> bool:
    """Return whether parts can be joined along a dimension: they differ in its length alone."""
    return len({(one.shape[:dim], one.shape[dim + 1 :]) for one in parts}) == 1


def _joined(parts: Sequence[Pieces], dim: int) -> Pieces:
    """Return parts as one, one behind the other along a dimension."""
    end, pieces = 0, list[Piece]()
    for part in parts:
        for one in part.pieces:
            begin = (*one.begin[:dim], one.begin[dim] + end, *one.begin[dim + 1 :])
            pieces.append(replace(one, begin=begin))
        end += part.shape[dim]
    shape = parts[0].shape
    return Pieces((*shape[:dim], end, *shape[dim + 1 :]), tuple(pieces))
