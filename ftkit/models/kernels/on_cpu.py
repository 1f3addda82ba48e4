"""Whether a tensor is on a CPU, where some kernels have a form of their own."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ftkit.models import foreign


def is_on_cpu(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is on a CPU."""
    return tensor.device.type == "cpu"


@contextmanager
def judged_by(judge: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """Let another function stand for `is_on_cpu`, for tensors that are not on the device that is meant.

    Args:
        judge: takes and returns what `is_on_cpu` does.
    """
    with foreign.patched(sys.modules[__name__], "is_on_cpu", judge):
        yield
