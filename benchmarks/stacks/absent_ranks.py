"""A process group of which one rank alone exists: what it sends goes nowhere, and what it asks for is there at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def group_of(num_ranks: int) -> Iterator[None]:
    """Be in a process group of which the others are not there.

    Args:
        num_ranks: of the group.
    """
    is_ours = not dist.is_initialized()  # a test brings real ranks
    if is_ours:
        dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    try:
        yield
    finally:
        if is_ours:
            dist.destroy_process_group()
