"""Memory that the processes of a job on one machine have in common."""

import mmap
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftkit.errors import DeviceError
from ftkit.machine.process import ProcessContext
from ftkit.machine.ranks import of_all_ranks, together

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class HostMemory:
    """Memory of a machine.

    Attributes:
        bytes: uint8, one dimension, without values.
        number: of this process among those that have it in common, from 0.
        num_sharers: how many these are.
    """

    bytes: "torch.Tensor"
    number: int = 0
    num_sharers: int = 1


def host_memory(num_bytes: int, process: ProcessContext) -> HostMemory:
    """Return memory that all ranks of a job on this machine share.

    It has no name in any folder, so it goes with the last process that has it, however that ends; and the bound that
    containers set to /dev/shm does not count for it. Where the system has no such memory, each rank has its own.

    Args:
        num_bytes: that it has, 1 or more.
        process: the place of this process; every process of the job calls this.

    Raises:
        DeviceError: a rank cannot open what the first one on its machine has made.
    """
    import torch

    if sys.platform != "linux" or process.local_world_size == 1:
        return HostMemory(torch.empty(num_bytes, dtype=torch.uint8))
    own = None
    if process.local_rank == 0:
        own = os.memfd_create("ftkit")
        os.ftruncate(own, num_bytes)
    paths = of_all_ranks(process, f"/proc/{os.getpid()}/fd/{own}")
    path = paths[process.rank - process.local_rank]  # launchers count the ranks of a machine one after another
    mapped = together(process, lambda: _mapped(path, num_bytes))  # no rank closes it before all have it
    if own is not None:
        os.close(own)
    return HostMemory(torch.frombuffer(mapped, dtype=torch.uint8), process.local_rank, process.local_world_size)


def _mapped(path: str, num_bytes: int) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        raise DeviceError(
            f"the ranks on this machine cannot share memory ({error}); start them in one container and as one user, "
            "or choose engine.stream_layers=disk"
        ) from error
    try:
        return mmap.mmap(descriptor, num_bytes)
    finally:
        os.close(descriptor)
