"""The cores and the memory that this process has, and how much of the memory may be shared or pinned."""

import math
import os
import shutil
from pathlib import Path

from ftkit.machine.doctor.finding import Finding, ok, problem
from ftkit.machine.hardware import Machine, this_machine
from ftkit.machine.memory import free_host_bytes
from ftkit.units import format_bytes

_LEAST_FREE = 2**30
"""The smallest training on a CPU takes about 700 MiB (docs/quickstart.md)."""
_LEAST_SHARED = 2**29
"""NCCL maps some tens of MB for each pair of ranks; a container has 64 MiB of it where nothing is asked for."""
_LEAST_LOCKED = 2**30
_SHARED = Path("/dev/shm")  # a mount of the system, not a folder for files
_QUOTA_V2, _QUOTA_V1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_PERIOD_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
_KERNEL = Path("/proc/version")


def look_at_host() -> list[Finding]:
    """Return what is found of cores and memory."""
    machine = this_machine()
    return [_cores(machine), _memory(machine), _locked(machine), *_shared()]


def _cores(machine: Machine) -> Finding:
    quota, threads = cpu_quota(), os.environ.get("OMP_NUM_THREADS")
    asked = f", OMP_NUM_THREADS={threads}" if threads else ""
    if quota is not None and quota < machine.num_cpus and not threads:
        fact = f"{machine.num_cpus} visible, of which the control group grants the time of {quota:g}"
        cure = f"export OMP_NUM_THREADS={max(1, math.floor(quota))}, or threads wait for one another"
        return problem("cores", fact, cure)
    granted = "" if quota is None else f", the time of {quota:g}"
    return ok("cores", f"{machine.num_cpus}{granted}{asked}")


def cpu_quota() -> float | None:
    """Return how many cores' time the control group grants; None where it sets no limit."""
    if _QUOTA_V2.is_file():
        quota, period = _QUOTA_V2.read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    if _QUOTA_V1.is_file() and _PERIOD_V1.is_file():
        limit = int(_QUOTA_V1.read_text(encoding="ascii"))
        return None if limit <= 0 else limit / int(_PERIOD_V1.read_text(encoding="ascii"))
    return None


def _memory(machine: Machine) -> Finding:
    free = free_host_bytes()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = f", limited to {format_bytes(machine.memory_bytes)}" if machine.memory_bytes < physical else ""
    fact = f"{format_bytes(physical)}{limit}" + ("" if free is None else f", {format_bytes(free)} free")
    if min(machine.memory_bytes, machine.memory_bytes if free is None else free) < _LEAST_FREE:
        cure = "end other programs, or raise the limit of the container or of `ulimit -v`; training takes about 1 GiB"
        return problem("memory", fact, cure, is_blocking=machine.memory_bytes < _LEAST_FREE)
    return ok("memory", fact)


def _locked(machine: Machine) -> Finding:
    """Return what may be pinned, as a plan and `pinned_bytes` know it: RLIMIT_MEMLOCK, and a word on WSL."""
    limit = "no limit" if machine.locked_bytes is None else f"{format_bytes(machine.locked_bytes)} (ulimit -l)"
    is_wsl = _KERNEL.is_file() and "microsoft" in _KERNEL.read_text(encoding="utf-8").lower()
    if not _has_accelerator():
        return ok("pinned memory", f"{limit}; a CPU pins nothing")
    if machine.locked_bytes is not None and machine.locked_bytes < _LEAST_LOCKED:
        cure = "`ulimit -l unlimited`, or memlock in /etc/security/limits.conf, for offload with pinned memory"
        return problem("pinned memory", limit, cure)
    return ok("pinned memory", f"{limit}; WSL grants a part of the machine's memory" if is_wsl else limit)


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _shared() -> list[Finding]:
    if not _SHARED.is_dir():
        return []
    space = shutil.disk_usage(_SHARED)
    fact = f"{format_bytes(space.total)}, {format_bytes(space.free)} free"
    if space.free < _LEAST_SHARED:
        cure = "start the container with --shm-size=2g or --ipc=host, or remove what lies in it, for several ranks"
        return [problem("/dev/shm", fact, cure)]
    return [ok("/dev/shm", fact)]
