"""The target of a plan: a GPU of the table, a number of bytes, or this machine."""

from dataclasses import dataclass, field, replace

import torch

from ftkit.engine.resolve import Devices, ResolvedRun
from ftkit.errors import ConfigError
from ftkit.machine.hardware import Gpu, find_gpu, parse_budget, recognize_gpu, several, this_machine
from ftkit.machine.process import Launcher, has_bf16, usual_launcher
from ftkit.plan.seconds.calibration import Calibration, find_calibration
from ftkit.plan.seconds.looks import Kind, find_look
from ftkit.plan.seconds.messages import Wire, assumed_wire, find_wire
from ftkit.plan.seconds.speed import Device, cpu_device, gpu_device
from ftkit.units import format_bytes

CPU = "cpu"
"""The name of this machine's own processor among the cards."""
PROFILED_BYTES = 387 * 10**6
"""What a process on a CPU holds that is profiled, before any weight: its libraries, and neither data nor a plan (of
MiniLM, seen in /proc/self/status)."""
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
        held_bytes: on a CPU, what the process that will train has now; None: another process will.
        looked: on a CPU that is not calibrated, its speed in a few steps that were timed now; None: none were.
        timed_wire: what ranks on a CPU were timed now to send each other; None: they were not.
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
    held_bytes: int | None = None
    looked: Device | None = field(default=None, hash=False)
    timed_wire: Wire | None = field(default=None, hash=False)

    @property
    def words(self) -> str:
        """The device with its number, where there are several: `2 x T4`."""
        return self.name if self.num_devices == 1 else f"{self.num_devices} x {self.name}"

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
        """The least and the most of it, by what is published."""
        return (0, 0) if self.gpu is None else (self.gpu.context.low_bytes, self.gpu.context.high_bytes)

    @property
    def wire(self) -> Wire:
        """The way between the ranks: a GPU's link; on a CPU as it was timed, where it was."""
        if self.gpu is not None:
            return Wire(self.num_devices, self.gpu.link, source="by the link of the table of cards")
        return self.timed_wire or find_wire(self.num_devices) or assumed_wire(self.num_devices)

    def within(self, budget_bytes: int | None) -> "Target":
        """Return the target of a run that may take so much of each device at most; None: all that there is."""
        if budget_bytes is None or budget_bytes >= self.memory_bytes:
            return self
        ram = self.ram_bytes if self.device_type != "cpu" else budget_bytes * self.num_devices
        return replace(self, memory_bytes=budget_bytes, ram_bytes=ram)

    def device(self, run: ResolvedRun) -> Device:
        """Return the speed of one device in a run: as it was calibrated, else as steps of its kind have shown it.

        Args:
            run: resolved for this target.
        """
        if (found := self.calibration) is not None:
            return found.device
        if self.gpu is not None:
            return gpu_device(self.gpu, run.precision)
        if self.looked is not None:
            return self.looked
        look = find_look(self.num_threads, Kind.of(run))
        return cpu_device(self.num_threads) if look is None else look.device

    @property
    def calibration(self) -> Calibration | None:
        """The figures that were measured of this machine's own device; None where it is not, or has not been."""
        return find_calibration(self.num_threads if self.gpu is None else self.name).calibration

    @property
    def num_threads(self) -> int:
        """The threads of one rank on a CPU."""
        return max(1, min(torch.get_num_threads(), self.num_cpus // self.num_devices))


def find_target(
    gpu: str | None = None,
    num_devices: int | None = None,
    memory_budget: str | None = None,
    ram_budget: str | None = None,
    launcher: Launcher | None = None,
    memory_used: str | None = None,
) -> Target:
    """Return the target that flags name; this machine where they name none.

    Args:
        gpu: a name of the table, several cards such as `2x3090`, or `cpu`.
        num_devices: ranks; None: as `gpu` says, else one.
        memory_budget: bytes of one device, such as `8GiB`; overrides the table's.
        ram_budget: bytes of host memory.
        launcher: what starts the ranks; None: see `usual_launcher`.
        memory_used: bytes of each device that other programs have.

    Returns:
        The target.

    Raises:
        ConfigError: an unknown GPU, a budget that is not a size, or numbers of devices that contradict each other.
    """
    number, gpu = _number_and_name(num_devices, gpu)
    ram = parse_budget(ram_budget) if ram_budget else None
    budget = parse_budget(memory_budget) if memory_budget else None
    launcher = launcher or usual_launcher(number)
    target = _named(gpu, number, memory_budget, budget, ram)
    return replace(target, memory_bytes=_left(target, memory_used), launcher=launcher)


def _number_and_name(num_devices: int | None, gpu: str | None) -> tuple[int, str | None]:
    named, gpu = (None, None) if gpu is None else several(gpu)
    if named is not None and num_devices is not None and named != num_devices:
        raise ConfigError(f"--gpu names {named} cards and --gpus {num_devices}; say it once")
    number = 1 if (found := num_devices if named is None else named) is None else found
    if number < 1:
        flag = f"--gpus {number}" if named is None else f"the {number} of --gpu"
        raise ConfigError(f"{flag} is not a number of devices; give 1 or more")
    return number, gpu


def _named(gpu: str | None, number: int, given: str | None, budget: int | None, ram: int | None) -> Target:
    if gpu is not None and gpu.lower() == CPU:
        target = _cpu(number, ram)
        return target if budget is None else replace(target, memory_bytes=budget)
    if gpu is None and budget is None:
        return _here(number, ram)
    row = find_gpu(TYPICAL_GPU if gpu is None else gpu)
    name = f"a GPU with {given}" if gpu is None else row.name
    return Target(name, "cuda", row, budget or row.memory_bytes, number, ram)


def _left(target: Target, used: str | None) -> int:
    """Return what other programs leave of a device."""
    if used is None:
        return target.memory_bytes
    left = target.memory_bytes - parse_budget(used)
    if left <= 0:
        have = format_bytes(target.memory_bytes)
        raise ConfigError(f"--memory-used {used} leaves nothing of the {have} of {target.name}; give less")
    return left


def _here(num_devices: int, ram: int | None) -> Target:
    machine = this_machine()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        row = _row(properties.name)
        memory = int(properties.total_memory)
        ram = ram or machine.memory_bytes
        return Target(properties.name, "cuda", row, memory, num_devices, ram, machine.locked_bytes, machine.num_cpus)
    return _cpu(num_devices, ram)


def _cpu(num_devices: int, ram: int | None) -> Target:
    machine = this_machine()
    ram = ram or machine.memory_bytes
    share = ram // num_devices
    return Target("cpu", "cpu", None, share, num_devices, ram, machine.locked_bytes, machine.num_cpus)


def _row(name: str) -> Gpu:
    """Return the table's row for a name that the driver gives, such as `NVIDIA A100-SXM4-40GB`."""
    return recognize_gpu(name) or find_gpu(TYPICAL_GPU)
