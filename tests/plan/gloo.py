"""Gloo's thread holds what it has sent until it looks again: a peak that is counted then has it, or not, by chance."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch.distributed as dist

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


def let_go() -> None:
    """Give gloo's thread the time to let go after every collective of this process."""
    for name in COLLECTIVES:
        setattr(dist, name, _waiting(getattr(dist, name)))


def _waiting(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def wrapped(*args: Any, **options: Any) -> Any:
        out = call(*args, **options)
        time.sleep(SECONDS)
        return out

    return wrapped
