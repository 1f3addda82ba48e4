"""Weights that are left out of a model: in the place of each, a placeholder that says what it stands for."""

from dataclasses import dataclass

import torch

_MARK = "left_out"


@dataclass(frozen=True)
class LeftOut:
    """What a placeholder stands for.

    Attributes:
        name: of the weight in the transformers model, before a method changes it.
        is_transposed: whether the method holds the weight the other way round than its file does.
    """

    name: str
    is_transposed: bool = False


def placeholder(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return one number, seen in a shape, so that whoever asks for shape or type is answered."""
    return torch.empty((), dtype=dtype, device=device).expand(shape)


def mark(weight: torch.Tensor, left_out: LeftOut) -> None:
    """Write on a placeholder what it stands for."""
    vars(weight)[_MARK] = left_out


def left_out(weight: torch.Tensor) -> LeftOut | None:
    """Return what a weight stands for; None where it is all there."""
    found: LeftOut | None = vars(weight).get(_MARK)
    return found
