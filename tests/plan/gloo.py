"""Gloo's thread holds what it has sent until it looks again: a peak that is counted then has it, or not, by chance."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
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


def let_go(*, hides: bool = False, hears: Callable[[str, int], None] = lambda *_: None) -> None:
    """Give gloo's thread the time to let go after every collective of this process.

    Args:
        hides: no recorder sees the copies that gloo makes, which NCCL does not.
        hears: told of each collective, with the bytes of its largest tensor.
    """
    for name in COLLECTIVES:
        setattr(dist, name, _waiting(name, _disable_current_modes if hides else nullcontext, hears))


def _waiting(name: str, inside: Callable[[], Any], hears: Callable[[str, int], None]) -> Callable[..., Any]:
    call = getattr(dist, name)

    @wraps(call)
    def wrapped(*args: Any, **options: Any) -> Any:
        hears(name, max((one.nbytes for one in (*args, *options.values()) if isinstance(one, torch.Tensor)), default=0))
        with inside():
            out = call(*args, **options)
        time.sleep(SECONDS)
        return out

    return wrapped
