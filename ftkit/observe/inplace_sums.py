"""Detect which gradient accumulations autograd performs in place.

It adds in place where it holds the last reference to the first summand, but not under a dispatch mode, which would see
the operator (torch/csrc/autograd/input_buffer.cpp, can_accumulate_inplace).
"""

import sys
from functools import cache
from typing import Any

import torch

from ftkit.models.kernels.foreign import DispatchMode
from ftkit.models.streaming.foreign import num_references
from ftkit.observe import foreign

ADD = torch.ops.aten.add.Tensor


def autograd_adds_in_place(args: tuple[Any, ...]) -> bool:
    """Return whether autograd would have added two summands in place; asked by a dispatch mode, of its own call.

    Args:
        args: of the call of `ADD`.

    Returns:
        Whether autograd itself called the operator, not code that it runs such as a recomputation, and nobody else
        has the first summand.
    """
    return _is_last_reference(args) and foreign.is_backward(sys._getframe(1).f_back)


def _is_last_reference(args: tuple[Any, ...]) -> bool:
    """Return whether the first of two tensors alike is dense and nobody else has it or its storage."""
    if not isinstance(args[1], torch.Tensor) or args[0].shape != args[1].shape or args[0].dtype != args[1].dtype:
        return False
    storage = args[0].untyped_storage()
    # One reference is the tensor's, one is `storage`.
    if num_references(storage) != 2 or storage.nbytes() != args[0].nbytes:
        return False
    return _references(args) == references_of_the_last()


def _references(args: tuple[Any, ...]) -> tuple[int, int]:
    """Return how many references Python and torch have to the first of some tensors."""
    return sys.getrefcount(args[0]), foreign.tensor_users(args[0])


class _Counting(DispatchMode):
    """Counts references to the first summands of sums."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is ADD:
            self.counted.append(_references(args))
        return func(*args, **(kwargs or {}))


@cache
def references_of_the_last() -> tuple[int, int]:
    """Return the references to a summand of gradients that nobody but autograd has: the versions decide how many."""
    half = torch.ones(1, requires_grad=True) * 2
    loss = half * 3 + half * 5
    with _Counting() as counting:
        loss.backward()
    counted: tuple[int, int] = counting.counted[0]
    return counted
