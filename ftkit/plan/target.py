"""The target of a plan: a GPU of the table, a number of bytes, or this machine."""

from dataclasses import dataclass, replace

import torch

from ftkit.engine.resolve import Devices
from ftkit.errors import ConfigError
from ftkit.machine.hardware import Gpu, find_gpu, parse_budget, recognize_gpu, this_machine
from ftkit.machine.process import Launcher, has_bf16, usual_launcher
from ftkit.plan.speed import Device, cpu_device, gpu_device

HOST_LINK = 10e9
"""Bytes per second between two processes of a CPU, which share its memory."""
TYPICAL_GPU = "rtx3060"
"""Whose kernels and speed are taken where only a number of bytes is given."""


@dataclass(frozen=True)
class Target:
    """One node.

    Attributes:
        name: of the device.
        device_type: `cuda` or `cpu`: whose way of computing.
        gpu: the row of the table; None on a CPU.
        memory_bytes: of one device; on a CPU, of the machine.
        num_devices: ranks.
        ram_bytes: of the node; None: not checked.
        locked_bytes: what may be pinned; None: no limit.
        num_cpus: cores.
        launcher: what starts the ranks.
    """

    name: str
    device_type: str
    gpu: Gpu | None
    memory_bytes: int
    num_devices: int = 1
    ram_bytes: int | None = None
    locked_bytes: int | None = None
    num_cpus: int = 1
    launcher: Launcher = "none"

    @property
    def devices(self) -> Devices:
        """The devices that a configuration is resolved for."""
        fast = has_bf16(torch.device("cpu")) if self.gpu is None else self.gpu.has_bf16
        return Devices(self.device_type, fast, self.num_devices, self.launcher)

    @property
    def context_bytes(self) -> int:
        """The memory that one process takes of the device before any tensor, at most."""
        return self.context_range[1]

    @property
    def context_range(self) -> tuple[int, int]:
        """The least and the most of it: of the card where it is published, else of any card."""
        return (0, 0) if self.gpu is None else self.gpu.context_range

    @property
    def link(self) -> float:
        """Bytes per second that one device sends to another."""
        return HOST_LINK if self.gpu is None else self.gpu.link

    def device(self, precision: str) -> Device:
        """Return the speed of one device."""
        if self.gpu is not None:
            return gpu_device(self.gpu, precision)
        return cpu_device(max(1, min(torch.get_num_threads(), self.num_cpus // self.num_devices)))


def find_target(
    gpu: str | None = None,
    num_devices: int = 1,
    memory_budget: str | None = None,
    ram_budget: str | None = None,
    launcher: Launcher | None = None,
) -> Target:
    """Return the target that flags name; this machine where they name none.

    Args:
        gpu: a name of the table.
        num_devices: ranks.
        memory_budget: bytes of one device, such as `8GiB`; overrides the table's.
        ram_budget: bytes of host memory.
        launcher: what starts the ranks; None: see `usual_launcher`.

    Returns:
        The target.

    Raises:
        ConfigError: an unknown GPU, or a budget that is none.
    """
    if num_devices < 1:
        raise ConfigError(f"--gpus {num_devices} is not a number of devices; give 1 or more")
    ram = parse_budget(ram_budget) if ram_budget else None
    budget = parse_budget(memory_budget) if memory_budget else None
    launcher = launcher or usual_launcher(num_devices)
    if gpu is None and budget is None:
        return replace(_here(num_devices, ram), launcher=launcher)
    row = find_gpu(gpu or TYPICAL_GPU)
    name = row.name if gpu else f"a GPU with {memory_budget}"
    return Target(name, "cuda", row, budget or row.memory_bytes, num_devices, ram, launcher=launcher)


def _here(num_devices: int, ram: int | None) -> Target:
    machine = this_machine()
    ram = ram or machine.memory_bytes
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        row = _row(properties.name)
        memory = int(properties.total_memory)
        return Target(properties.name, "cuda", row, memory, num_devices, ram, machine.locked_bytes, machine.num_cpus)
    share = ram // num_devices
    return Target("cpu", "cpu", None, share, num_devices, ram, machine.locked_bytes, machine.num_cpus)


def _row(name: str) -> Gpu:
    """Return the table's row for a name that the driver gives, such as `NVIDIA A100-SXM4-40GB`."""
    return recognize_gpu(name) or find_gpu(TYPICAL_GPU)
