"""Gloo's thread holds what it has sent until it looks again: a peak that is counted then has it, or not, by chance."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

SECONDS = 0.002
COLLECTIVES = (
    "all_reduce",
    "reduce",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
)


def let_go(*, hides: bool = False) -> None:
    """Give gloo's thread the time to let go after every collective of this process.

    Args:
        hides: no recorder sees the copies that gloo makes, which NCCL does not.
    """
    for name in COLLECTIVES:
        setattr(dist, name, _waiting(getattr(dist, name), _disable_current_modes if hides else nullcontext))


def _waiting(call: Callable[..., Any], inside: Callable[[], Any]) -> Callable[..., Any]:
    @wraps(call)
    def wrapped(*args: Any, **options: Any) -> Any:
        with inside():
            out = call(*args, **options)
        time.sleep(SECONDS)
        return out

    return wrapped
