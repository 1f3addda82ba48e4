"""Measure a GPU: what products of matrices, its memory and the link to the host reach, and what an operator costs.

Kernels follow one another on a GPU while the host goes on, so what is timed is a row of them, to the end of the last.
What an operator costs the host is seen in steps of models so small that the GPU waits for the host: the call of each
operator by itself, with the launch of its kernels, and in each phase what Python, modules and autograd take beside it.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ftkit.errors import DependencyError, DeviceError
from ftkit.machine.process import ProcessContext, has_bf16, joined
from ftkit.machine.versions import device_name
from ftkit.plan.seconds.calibration import Calibration, fingerprint, source_words
from ftkit.plan.seconds.cpu_rates import disk_rates, today
from ftkit.plan.seconds.reach import MEASURED
from ftkit.plan.seconds.samples import Sample, stepper
from ftkit.plan.seconds.speed import Device
from ftkit.plan.seconds.stopwatch import Parts, Seen, Stopwatch
from ftkit.step.observer import Phase

HOST_SAMPLES = (
    Sample("lora", is_decoder=True, width=128, batch=2, length=32),
    Sample("full", is_decoder=False, width=128, batch=2, length=32),
    Sample("qlora", is_decoder=True, width=128, batch=2, length=32),
)
"""Their kernels cost any GPU less than the host needs to ask for them."""
_ROUNDS, _IN_A_ROW, _STEPS = 4, 5, 8


@dataclass(frozen=True)
class Sizes:
    """What a GPU is measured with: 0.8 GiB of its memory, and less than 10 s of one with 2 TFLOP/s.

    Attributes:
        product: rows and columns of square matrices: large enough for each of the published peaks that is reached.
        moved: bytes of a tensor, several times the largest cache.
        linked: bytes of pinned memory that go to the device.
    """

    product: int = 4096
    moved: int = 2**28
    linked: int = 2**27


def calibrate_gpu(device: torch.device, tell: Callable[[str], None], sizes: Sizes | None = None) -> Calibration:
    """Measure a GPU, the link to it, and the disk.

    Args:
        device: the GPU, which is that of this process.
        tell: told of each thing that is measured.
        sizes: of what is measured with; None: the usual ones.

    Returns:
        The figures.

    Raises:
        DeviceError: other programs leave too little of its memory.
        OSError: the cache, whose disk is tried, cannot be written.
    """
    sizes = sizes or Sizes()
    written, read = disk_rates()
    try:
        tell("products of matrices")
        half = torch.bfloat16 if has_bf16(device) else torch.float16
        fp32_flops, half_flops = (_product_flops(device, dtype, sizes.product) for dtype in (torch.float32, half))
        unaligned = _product_flops(device, half, sizes.product - 1) / half_flops
        tell("operators that move bytes inside the device, and copies to it")
        bandwidth, link = _bandwidth(device, half, sizes.moved), _link(device, sizes.linked)
        seen = _asking(device, tell)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{device_name(device)} has too little free memory to be measured, which takes 0.8 GiB; end the other "
            "programs that nvidia-smi shows, or leave --calibrate out"
        ) from error
    date = today()
    source = source_words(date)
    hosts, asked = seen.hosts(), seen.stopwatch.asked()
    # Of an operator that no sample has.
    usual = statistics.median(asked.values()) + hosts[Phase.FORWARD]
    speed = Device(
        fp32_flops, half_flops, bandwidth, usual, True,
        source=source, host_rate=link, reach=replace(MEASURED, unaligned=unaligned), hosts=hosts, asked=asked,
    )  # fmt: skip
    return Calibration(date, fingerprint(device_name(device)), speed, read, written, link)


def _product_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))  # zeros would draw less power
    out = torch.empty_like(left)
    return 2 * size**3 / _best_seconds(device, lambda: torch.mm(left, right, out=out))


def _bandwidth(device: torch.device, half: torch.dtype, num_bytes: int) -> float:
    """Return the rate at which a step moves bytes: in sums, products in place and changes of type."""
    one = torch.ones(num_bytes // half.itemsize, dtype=half, device=device)
    other, wide = torch.ones_like(one), torch.empty(len(one) // 2, device=device)
    works: list[Callable[[], object]] = [
        lambda: torch.add(one, other, out=other),
        lambda: other.mul_(1.0),
        lambda: wide.copy_(one[: len(wide)]),
    ]
    moved = (3 + 2) * num_bytes + wide.nbytes + len(wide) * half.itemsize
    return moved / sum(_best_seconds(device, work) for work in works)


def _link(device: torch.device, num_bytes: int) -> float:
    """Return the rate of copies out of memory that is pinned, or where that is refused, as streamed layers' is, not."""
    source = torch.zeros(num_bytes, dtype=torch.uint8)
    with contextlib.suppress(RuntimeError):
        source = source.pin_memory()
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return num_bytes / _best_seconds(device, lambda: target.copy_(source, non_blocking=True))


def _asking(device: torch.device, tell: Callable[[str], None]) -> Seen:
    """Time what the host does in steps: each call of an operator, and the phases that nobody watches."""
    seen = Seen(Stopwatch(clock=time.perf_counter))  # autograd asks from a thread of its own
    with tempfile.TemporaryDirectory(prefix="ftkit-calibrate-") as name, joined(ProcessContext()):
        for number, sample in enumerate(HOST_SAMPLES):
            tell(f"steps of {sample}")
            try:
                take = stepper(sample, Path(name, str(number))).take
            except DependencyError:
                tell(f"left out, since bitsandbytes is not there: {sample}")
                continue
            for _ in range(_ROUNDS):  # libraries are loaded, the optimizer has no state yet, clocks go up
                take()
            for _ in range(_STEPS):
                bare, watched = (Parts(seen.stopwatch, partial(_finish, device)) for _ in range(2))
                take(bare)
                with seen.stopwatch:
                    take(watched)
                seen.beside(bare.each, watched.each)
    return seen


def _best_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Return how long a piece of work takes in a row of such, in the best of some rows."""
    work()  # libraries are loaded, and clocks go up

    def row() -> None:
        for _ in range(_IN_A_ROW):
            work()

    return min(_seconds(device, row) for _ in range(_ROUNDS)) / _IN_A_ROW


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    _finish(device)
    begun = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - begun


def _finish(device: torch.device) -> None:
    """Wait for all that a GPU has been asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
