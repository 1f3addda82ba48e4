"""Memory that the processes of a job on one machine have in common."""

import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
    containers set to /dev/shm does not count for it. Where the system has no such memory, each rank has its own; so do
    ranks in containers of their own, which do not see one another's processes.

    Args:
        num_bytes: that it has, 1 or more.
        process: the place of this process; every process of the job calls this.

    Raises:
        DeviceError: a rank cannot make the memory, or cannot open what the first one on its machine has made.
    """
    sharers = sharers_of(of_all_ranks(process, _system()), process.rank)
    is_maker = len(sharers) > 1 and process.rank == sharers[0]
    own = together(process, lambda: _made(num_bytes) if is_maker else None)
    paths = of_all_ranks(process, None if own is None else f"/proc/{os.getpid()}/fd/{own}")
    path = paths[sharers[0]]
    memory = together(process, lambda: _mapped(path, num_bytes))  # no rank closes it before all have it
    if own is not None:
        os.close(own)
    return HostMemory(memory, sharers.index(process.rank), len(sharers))


def sharers_of(systems: Sequence[tuple[str, ...] | None], rank: int) -> list[int]:
    """Return the ranks that share memory with a rank, itself among them, in their order.

    Launchers need not say which ranks are on one machine, nor count those of a machine one after another.

    Args:
        systems: of each rank, what it has in common with those whose memory it can open; None: shares with nobody.
        rank: one of them.
    """
    if systems[rank] is None:
        return [rank]
    return [other for other, system in enumerate(systems) if system == systems[rank]]


def _system() -> tuple[str, ...] | None:
    """Return what names the machine, and on it the container whose processes see one another; None: neither is known.

    Clones of a virtual machine that was saved while it ran have the boot in common, but not their names.
    """
    # Pythons that were built against a glibc before 2.27, as some of conda's were, do not have it.
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return boot, str(Path("/proc/self/ns/pid").readlink()), os.uname().nodename
    except OSError:  # a sandbox without them: memory is not found through /proc there either
        return None


def _made(num_bytes: int) -> int:
    """Return the descriptor of new memory."""
    with _refused_in_a_sentence():
        descriptor = os.memfd_create("ftkit")
        os.ftruncate(descriptor, num_bytes)
    return descriptor


def _mapped(path: str | None, num_bytes: int) -> "torch.Tensor":
    """Return the memory of a path; without one, new memory of this process."""
    import torch

    if path is None:
        return torch.empty(num_bytes, dtype=torch.uint8)
    with _refused_in_a_sentence():
        descriptor = os.open(path, os.O_RDWR)
        try:
            return torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=torch.uint8)
        finally:
            os.close(descriptor)


@contextmanager
def _refused_in_a_sentence() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeviceError(
            f"the ranks on this machine cannot share memory ({error}); start them in one container and as one user, "
            "or give --set engine.stream_layers=disk"
        ) from error
