"""How long a step takes: each operator by the roofline (Williams et al. 2009), and what goes over the wire.

An operator takes as long as its arithmetic at the device's peak or its bytes at the device's bandwidth, whichever is
longer, and never less than a launch. These are upper bounds of the speed: real kernels reach half to nine tenths of
them, so a prediction orders configurations rather than promising a time. No constant here is fitted.
"""

from collections import Counter
from dataclasses import dataclass

from ftkit.hardware import Gpu
from ftkit.plan.tape import OPTIMIZER, OpKey, Tape

LAUNCH_SECONDS = 5e-6
"""One eager operator on the host: Python, dispatch and launch, about 5 microseconds."""
CPU_FLOPS_PER_CORE = 50e9
"""Two 256-bit fused multiply-adds of fp32 in each of 1.6e9 cycles, what a small cloud core sustains."""
CPU_BANDWIDTH = 10e9
"""One or two cores of a shared server move about this many bytes per second."""


@dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        fp32_flops, half_flops: dense FLOP/s.
        bandwidth: bytes per second of its memory.
        launch_seconds: the least that an operator costs.
    """

    fp32_flops: float
    half_flops: float
    bandwidth: float
    launch_seconds: float


@dataclass(frozen=True)
class StepTime:
    """What one optimizer step on one rank does.

    Attributes:
        seconds: without communication.
        flops: of its matrix products.
    """

    seconds: float
    flops: float


def gpu_device(gpu: Gpu, precision: str) -> Device:
    """Return the speed of a GPU in a precision."""
    return Device(gpu.fp32_flops, gpu.flops(precision), gpu.bandwidth, LAUNCH_SECONDS)


def cpu_device(num_cpus: int) -> Device:
    """Return the speed of a CPU, roughly."""
    flops = CPU_FLOPS_PER_CORE * num_cpus
    return Device(flops, flops, CPU_BANDWIDTH, LAUNCH_SECONDS)


def step_time(tape: Tape, device: Device, num_micro_batches: int, traced_micro_batches: int) -> StepTime:
    """Return the time of the last traced step.

    Args:
        tape: of two steps; the second is the usual one.
        device: what computes.
        num_micro_batches: of a real step.
        traced_micro_batches: of the traced step, all alike.

    Returns:
        Time and work of one step.
    """
    last = max((step for _, step, _ in tape.costs), default=0)
    repeats = num_micro_batches / traced_micro_batches
    seconds = flops = 0.0
    for (phase, step, _), counter in tape.costs.items():
        if step == last:
            factor = 1.0 if phase == OPTIMIZER else repeats
            time = _seconds(counter, device)
            seconds += factor * time.seconds
            flops += factor * time.flops
    return StepTime(seconds, flops)


def _seconds(counter: Counter[OpKey], device: Device) -> StepTime:
    seconds = total = 0.0
    for (name, flops, moved, dtype), count in counter.items():
        peak = device.half_flops if dtype in ("bfloat16", "float16") else device.fp32_flops
        launch = 0.0 if name.startswith("_fused") else device.launch_seconds
        seconds += count * max(flops / peak, moved / device.bandwidth, launch)
        total += count * flops
    return StepTime(seconds, total)
