"""The threads that torch computes with: how long they wait for one another, and those of a copy of a process."""

import os
import threading
from collections.abc import Callable

_SPINS, _POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
"""Variables that GNU's OpenMP, which torch computes with, reads once, as torch is imported (manual of libgomp)."""
_MOST_SPINS = 10_000
"""Looks at a lock. With half as many, two threads lose half of what they gain over one where nothing else runs."""


def wait_briefly() -> None:
    """Let threads that wait for others give their cores away soon; call it before torch is imported.

    By itself GNU's OpenMP looks 300,000 times, on the cores that the others may need: beside one other program that
    computes, two threads then train several times slower than one does. What the user has set of it stays, and
    processes that this one starts have the same.
    """
    if _POLICY not in os.environ:
        os.environ.setdefault(_SPINS, str(_MOST_SPINS))


def work_in_a_copy(work: Callable[[], None]) -> None:
    """Work in a copy of a process, which has torch, in a thread of its own, and wait for it.

    The thread that was copied believes that OpenMP's others had come along. And torch makes its pool when it computes
    for the first time after a fork: of several threads that do so at one moment some find none, "Invalid thread pool!"
    (torch 2.13, aten/src/ATen/ParallelOpenMP.cpp). So the one that works has it made before there are others.

    Args:
        work: what the copy is for.
    """

    def run() -> None:
        import torch

        torch.get_num_threads()
        work()

    worker = threading.Thread(target=run)
    worker.start()
    worker.join()
