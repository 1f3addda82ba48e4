"""Read this process's memory from the system; a figure that cannot be taken is None."""

import contextlib
import gc
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.errors import DeviceError
from ftkit.machine import foreign, heap
from ftkit.machine.driver import device_process_bytes

if TYPE_CHECKING:
    import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""What torch's allocator reads when it starts, the first that is there (torch 2.13, AcceleratorAllocatorConfig)."""
_MOST_ENTRIES = 100_000
"""Allocations and releases that a snapshot remembers, the last ones; torch says "several KB" for each."""


@contextlib.contextmanager
def quiet_collector(*, trusts: bool = False) -> Iterator[None]:
    """Keep the cycle collector from running at moments of its own, in which it frees tensors, or nothing at all.

    While torch, transformers and PEFT are imported it looks at all of their objects some times, for an eighth of the
    processor's time, and they stay.

    Args:
        trusts: what was made meanwhile counts as old afterwards, and is looked at only when the whole heap is.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if trusts:
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()


def grow_segments() -> None:
    """Ask torch's CUDA allocator for segments that grow, before torch is imported; what the user asked of it stays."""
    name = next((one for one in _ALLOCATOR if one in os.environ), _ALLOCATOR[-1])
    setting = os.environ.get(name, "")
    if "expandable_segments" not in setting:
        os.environ[name] = ",".join(filter(None, (setting, "expandable_segments:True")))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an accelerator's allocator, torch's on a CPU, or Python itself ran out of memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or foreign.TorchSays.NO_HOST_MEMORY in str(error)


def says_no_memory(text: str) -> bool:
    """Return whether what a process wrote says that memory ran out."""
    return any(words in text for words in foreign.MEMORY_IS_OUT)


def release_memory(device: "torch.device") -> None:
    """Give back what the allocators of host and device keep for later, after what has died in cycles too.

    Args:
        device: whose allocator.
    """
    import torch

    gc.collect()
    heap.trim()
    if device.type != "cpu" and _has_statistics(device):
        torch.accelerator.empty_cache()


def available_bytes(device: "torch.device") -> int | None:
    """Return the memory that this process holds together with what it could still get, as where memory has run out.

    Other programs take part of a device, so this may be far less than what the device has.

    Args:
        device: of any kind.

    Returns:
        Bytes; None where nobody tells. Of a CPU: resident memory and the least of what the machine, the control group
        and the limit of this shell's address space leave.
    """
    import torch

    if device.type != "cpu":
        free = free_device_bytes(device)  # first, since it gives cached blocks back
        return (
            None if free is None else free + (device_process_bytes(device) or torch.accelerator.memory_reserved(device))
        )
    left = free_host_bytes()
    own, size = _own("VmRSS"), _own("VmSize")
    if left is None or own is None or size is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        left = min(left, max(0, limit - size))
    return own + left


def peak_resident_bytes() -> int | None:
    """Return the most resident memory that this process has had since its start or `reset_peaks` (Linux: VmHWM)."""
    return _own("VmHWM")


def resident_bytes() -> int | None:
    """Return the resident memory of this process, once what is free in its heap has been given back (Linux: VmRSS)."""
    heap.trim()
    return _own("VmRSS")


def page_faults() -> int:
    """Return how many pages this process has touched for the first time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _own(figure: str) -> int | None:
    """Return a figure of this process in bytes, as proc(5) names it; None where the system has no such file."""
    if not _STATUS.is_file():
        return None
    found = re.search(rf"{figure}:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else None


def free_host_bytes() -> int | None:
    """Return the bytes that another process could take on this machine, or in its control group; None if unknown.

    Source: proc(5) `MemAvailable`; cgroup v2 `memory.max` less `memory.current`, of which file pages give way.
    """
    free = []
    if _MEMINFO.is_file():
        rows = (line.split() for line in _MEMINFO.read_text(encoding="ascii").splitlines())
        free += [int(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:"]
    limit, used, parts = (_CGROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        kinds = dict(line.split() for line in parts.read_text(encoding="ascii").splitlines())
        files = int(kinds.get("inactive_file", 0)) + int(kinds.get("active_file", 0))
        free.append(int(text) - int(used.read_text(encoding="ascii")) + files)
    return min(free) if free else None


def free_device_bytes(device: "torch.device") -> int | None:
    """Return the bytes of an accelerator that another process could take; None where nobody says so, as of a CPU.

    Args:
        device: whose cached blocks are given back first.
    """
    import torch

    if device.type != "cuda":
        return None
    release_memory(device)
    free, _ = torch.cuda.mem_get_info(device)
    return free


def peak_allocator_bytes(device: "torch.device") -> tuple[int | None, int | None]:
    """Return the peaks of live tensors and of the caching allocator's segments, in bytes.

    Args:
        device: of any kind.

    Returns:
        (live, segments); None on a CPU, and on an accelerator whose allocator keeps no statistics.
    """
    import torch

    if not _has_statistics(device):
        return None, None
    return torch.accelerator.max_memory_allocated(device), torch.accelerator.max_memory_reserved(device)


def _has_statistics(device: "torch.device") -> bool:
    import torch

    if device.type == "cpu":
        return False
    try:
        torch.accelerator.max_memory_allocated(device)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def reset_peaks(device: "torch.device") -> None:
    """Reset the peaks to what is held now."""
    import torch

    if _has_statistics(device):
        torch.accelerator.reset_peak_memory_stats(device)
    if _CLEAR.is_file():
        _CLEAR.write_text("5")


class Snapshot:
    """torch's own record of what a CUDA allocator did and for whom, for the viewer at https://pytorch.org/memory_viz.

    It is a pickle, which is how torch writes it; ftkit reads none.
    """

    def __init__(self, device: "torch.device") -> None:
        """Record from here on.

        Args:
            device: must be a CUDA device.

        Raises:
            DeviceError: it is not one.
        """
        check_snapshot(device)
        self._is_open = True
        foreign.record_memory_history(_MOST_ENTRIES)

    def write(self, path: Path) -> None:
        """Write what was recorded and record no more; a second call does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        foreign.write_memory_history(str(path))
        foreign.forget_memory_history()


def check_snapshot(device: "torch.device") -> None:
    """See that torch can write a snapshot.

    Args:
        device: of any kind.

    Raises:
        DeviceError: its allocator is not CUDA's.
    """
    if device.type != "cuda":
        raise DeviceError(
            f"a memory snapshot is torch's record of its CUDA allocator, and this run computes on {device.type}; leave "
            "--memory-snapshot out: --memory-timeline counts live tensors on any device"
        )
