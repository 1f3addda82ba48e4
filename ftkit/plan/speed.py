"""How long a step takes: each operator by the roofline (Williams et al. 2009), and what goes over the wire.

An operator takes as long as its arithmetic at the device's peak or its bytes at the device's bandwidth, whichever is
longer. A GPU is asked for it beforehand: the host goes on while the device computes, and a phase takes as long as the
slower of the two, so a small model waits for Python. A CPU does both itself, one after the other. These are upper
bounds of the speed: real kernels reach half to nine tenths of them, so a prediction orders configurations rather than
promising a time. No constant here is fitted to a prediction.
"""

import functools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ftkit.hardware import Gpu
from ftkit.plan.tape import OPTIMIZER, OpKey, Tape

HOST_SECONDS = 10e-6
"""What an operator costs the host: Python, modules, autograd, dispatch and the views around it. A step of a model whose
kernels cost nothing takes 9 (Llama) to 11 (GPT-2) microseconds of one core for each (benchmarks/host_cost.py)."""
LAUNCH_SECONDS = 5e-6
"""What asking a GPU for a kernel costs beside: a call of the driver."""
_MATRIX, _COPIED_BYTES, _LAUNCHES, _ROUNDS = 512, 2**24, 200, 6
"""What a CPU is timed with: past the caches of a small core, and a fifth of a second in all."""


@dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        fp32_flops, half_flops: dense FLOP/s.
        bandwidth: bytes per second of its memory.
        host_seconds: what an operator costs whoever asks for it.
        is_asynchronous: whether it computes while the host asks for more.
    """

    fp32_flops: float
    half_flops: float
    bandwidth: float
    host_seconds: float
    is_asynchronous: bool


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
    return Device(gpu.fp32_flops, gpu.flops(precision), gpu.bandwidth, HOST_SECONDS + LAUNCH_SECONDS, True)


@functools.cache
def cpu_device(num_threads: int) -> Device:
    """Return the speed of this machine's CPU as it is now, measured in a fifth of a second.

    Args:
        num_threads: of one rank.

    Returns:
        The rate of a product of matrices in fp32 and bf16, of a copy, and of a small operator; the best of some rounds,
        since others may be at work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        fp32, half = (_matmul_flops(dtype) for dtype in (torch.float32, torch.bfloat16))
        source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8)
        target, small = torch.ones_like(source), torch.ones(8)
        bandwidth = 2 * _COPIED_BYTES / _best_seconds(lambda: target.copy_(source))
        launch = _best_seconds(lambda: [small.add(1.0) for _ in range(_LAUNCHES)]) / _LAUNCHES
    finally:
        torch.set_num_threads(before)
    return Device(fp32, half, bandwidth, launch, False)


def _matmul_flops(dtype: torch.dtype) -> float:
    left = torch.ones(_MATRIX, _MATRIX, dtype=dtype)
    right = torch.ones(_MATRIX, _MATRIX, dtype=dtype)
    return float(2 * _MATRIX**3 / _best_seconds(lambda: left @ right))


def _best_seconds(work: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


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
    phases: dict[str, Counter[OpKey]] = defaultdict(Counter)
    for (phase, step, _), counter in tape.costs.items():
        if step == last:
            phases[phase] += counter
    repeats = num_micro_batches / traced_micro_batches
    seconds = flops = 0.0
    for phase, counter in phases.items():
        time = _phase_time(counter, device)
        factor = 1.0 if phase == OPTIMIZER else repeats
        seconds += factor * time.seconds
        flops += factor * time.flops
    return StepTime(seconds, flops)


def _phase_time(counter: Counter[OpKey], device: Device) -> StepTime:
    computing = asking = total = 0.0
    for (name, flops, moved, dtype), count in counter.items():
        peak = device.half_flops if dtype in ("bfloat16", "float16") else device.fp32_flops
        computing += count * max(flops / peak, moved / device.bandwidth)
        # One kernel serves a whole list of parameters.
        asking += 0.0 if name.startswith("_fused") else count * device.host_seconds
        total += count * flops
    return StepTime(max(computing, asking) if device.is_asynchronous else computing + asking, total)
