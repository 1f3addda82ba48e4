"""Be one of the processes whose messages are timed: `python -m ftkit.plan.seconds.between RANK RANKS STORE`.

The first one prints a line of JSON: each collective with the bytes of the whole tensor and the seconds of the median
message, and the share of a moment of computing for which a process had to wait for a core.
"""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import distributed

from ftkit.plan.seconds.messages import Collective

_SIZES = {2**4: 15, 2**14: 15, 2**18: 15, 2**21: 9, 2**25: 3}
"""Bytes, and how often: the largest is past the caches."""
_EMPTYING = 2**25
"""Bytes that a rank computes on before each message, as a step does: its caches are empty then, the threads that send
sleep, and it does not arrive at the same moment as the others."""
_MOMENT = 0.1
"""Seconds of computing, before the messages and after them."""


def main(rank: int, ranks: int, store: str) -> None:
    """Send messages of all sizes; the first rank prints what they took.

    Args:
        rank: of this process.
        ranks: how many there are.
        store: the file through which they find one another.
    """
    warnings.simplefilter("ignore")  # torch renames collectives
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    waited = [_waited()]
    seen = [
        (collective, size, seconds)
        for size, times in _SIZES.items()
        for collective, seconds in _timed(size // ranks, ranks, times)
    ]
    waited.append(_waited())
    if rank == 0:
        sys.stdout.write(json.dumps({"seen": seen, "waited": max(waited)}) + "\n")
    distributed.barrier()
    distributed.destroy_process_group()


def _waited() -> float:
    """Return the share of a moment, in which all ranks compute, for which the one that waited most had no core.

    Where they send messages they wait for one another too, so that this says nothing of other programs.
    """
    distributed.barrier()
    begun, worked = time.perf_counter(), time.process_time()
    while time.perf_counter() < begun + _MOMENT:
        pass
    share = torch.tensor([1 - (time.process_time() - worked) / (time.perf_counter() - begun)])
    distributed.all_reduce(share, op=distributed.ReduceOp.MAX)
    return share.item()


def _timed(part_bytes: int, ranks: int, times: int) -> Iterator[tuple[Collective, float]]:
    part = torch.ones(max(1, part_bytes // 4))
    whole, computed = torch.ones(ranks * part.numel()), torch.ones(_EMPTYING // 4)
    calls: dict[Collective, Callable[[], object]] = {
        Collective.SUM: lambda: distributed.all_reduce(whole),
        Collective.GATHER: lambda: distributed.all_gather_into_tensor(whole, part),
        Collective.SCATTER: lambda: distributed.reduce_scatter_tensor(part, whole),
    }
    for collective, call in calls.items():
        seconds = []
        for _ in range(times):
            whole.fill_(1.0)  # or sums of sums would overflow
            distributed.barrier()
            computed.mul_(1.0)
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        yield collective, statistics.median(seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
