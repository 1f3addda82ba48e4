"""Predict how long a step takes: each operator by the roofline (Williams et al. 2009), and what goes over the wire.

An operator takes as long as its arithmetic or its bytes, whichever is longer, at the part of the device's peak and
bandwidth that kernels reach (`reach.py`); what that makes of a step, in which a GPU computes while the host asks for
more, `step_time.py` says. On a CPU operators that compute much for each byte without being products of matrices
(dropout draws a random number, a softmax takes exponentials) are timed one by one, as the products are.

A tensor too large for the heap lies in pages that the system gives anew and clears, each time that it is born
(`ftkit/machine/heap.py`); touching them is timed by itself.

Where the machine is calibrated, operators were timed inside real steps (`ftkit/plan/seconds/cpu_rates.py`), and each
takes as long as the nearest of its name did there, and longer or shorter as others of its name do by their size
(`ftkit/plan/seconds/timed.py`).
"""

import contextlib
import functools
import math
import mmap
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ftkit.machine.hardware import Gpu
from ftkit.machine.heap import LARGEST_IN_HEAP
from ftkit.machine.memory import page_faults
from ftkit.machine.process import has_bf16
from ftkit.observe.operators import UNALIGNED, is_product
from ftkit.plan.seconds.hooks import HOOKS, hook_seconds
from ftkit.plan.seconds.loops import FEW_ROUNDS, best_seconds, operator_rates
from ftkit.plan.seconds.reach import WHOLE, Reach, reach_of
from ftkit.plan.seconds.timed import Law, Timed, law_of, seconds_of
from ftkit.step.observer import Phase

HOST_SECONDS = 10e-6
"""What an operator costs the host: Python, modules, autograd, dispatch and the views around it. A step of a model whose
kernels cost nothing takes 9 (Llama) to 11 (GPT-2) microseconds of one core for each (benchmarks/host_cost.py)."""
LAUNCH_SECONDS = 5e-6
"""What asking a GPU for a kernel costs beside: a call of the driver."""
SERVER_SECONDS = 30e-6
"""What an operator costs the host of a server's card. Of twelve trainings beside an H200 those that waited for their
host took 26 to 57 microseconds for each (torch 2.11), and the same host's core took 11 where there was no
kernel to ask for; the smallest models beside a T4 took 25 (docs/speed.md). Who rents a card rents a few of many slow
cores beside it."""
_MATRIX, _COPIED_BYTES, _LAUNCHES = 512, 3 * 2**24, 200
"""What a CPU is timed with, in a quarter of a second in all. 16 MiB still come from the last cache of a large server,
at twice the speed of 48 (a Xeon), and what is planned by the bandwidth is large, or takes no time."""
_FRESH_BYTES = LARGEST_IN_HEAP + 2**23
"""Of a tensor that is born to be timed: more than the heap takes."""
_INNER, _FIRST_ROWS, _FRESH_SHAPES = 376, 97, 21
"""Of the products of which each has a shape of its own, to see what a new one costs."""


FROM_TABLE = "from the table of cards, by what kernels reach of it"
MEASURED_NOW = "from a look at this processor, at best"
FROM_STEPS = "from a few steps of a small model on this processor"


@dataclass(frozen=True)
class Device:
    """A device that computes.

    Attributes:
        fp32_flops, half_flops: dense FLOP/s.
        bandwidth: bytes per second of its memory.
        host_seconds: what an operator costs whoever asks for it.
        is_asynchronous: whether it computes while the host asks for more.
        rates: name and dtype of an operator to the bytes per second that it moves, where that is not the bandwidth.
        timed: name and dtype of an operator to how long it took in real steps; empty where none were timed.
        source: where the figures are from, in words.
        host_rate: bytes per second between its memory and that of the host, in one direction.
        reach: the part of the first three that kernels reach; all of figures that were measured.
        fresh_rate: bytes per second of pages that the system gives anew, beside what is done with them.
        compile_seconds: that a product in half precision takes more where its shape is new, since a kernel is compiled.
        hook_seconds: what a hook around a module takes (`hooks.py`).
        hosts: what an operator costs whoever asks for it in a phase, where steps have shown it; else `host_seconds`.
        asked: name of an operator to what its call costs beside that, on a GPU whose host was timed.
    """

    fp32_flops: float
    half_flops: float
    bandwidth: float
    host_seconds: float
    is_asynchronous: bool
    rates: Mapping[tuple[str, str], float] = field(default_factory=dict)
    timed: Mapping[tuple[str, str], Sequence[Timed]] = field(default_factory=dict)
    source: str = FROM_TABLE
    host_rate: float = math.inf
    reach: Reach = WHOLE
    fresh_rate: float = math.inf
    compile_seconds: float = 0.0
    hook_seconds: float = 0.0
    hosts: Mapping[Phase, float] = field(default_factory=dict)
    asked: Mapping[str, float] = field(default_factory=dict)

    def flops(self, precision: str) -> float:
        """Return the dense FLOP/s in a precision."""
        return self.fp32_flops if precision == "fp32" else self.half_flops

    @functools.cached_property
    def _laws(self) -> Mapping[tuple[str, str], Law]:
        return {operator: law_of(timed) for operator, timed in self.timed.items()}

    def seconds(self, name: str, flops: float, moved: float, dtype: str) -> float:
        """Return how long one call of an operator computes.

        Args:
            name: of the operator, with its overload.
            flops: that it computes.
            moved: bytes of what it is given and what it makes.
            dtype: of its tensors.
        """
        operator = (name.partition(".")[0], dtype)
        if timed := self.timed.get(operator):
            found = seconds_of(timed, self._laws[operator], flops, moved)
            if found is not None:
                return found
        is_half = dtype in ("bfloat16", "float16")
        if name.endswith(UNALIGNED):
            flops /= self.reach.unaligned
        reached = self.half_flops * self.reach.half if is_half else self.fp32_flops * self.reach.single
        rate = self.rates.get(operator, self.bandwidth * self.reach.bandwidth)
        return max(flops / reached, moved / rate)

    def kernel_seconds(self, name: str) -> float:
        """Return what each kernel of an operator takes beside its work; nothing where steps have shown all of it.

        Args:
            name: of the operator, with its overload.
        """
        return self.reach.product_seconds if is_product(name) else self.reach.kernel_seconds

    def asking(self, name: str, phase: Phase) -> float:
        """Return what one call of an operator costs whoever asks for it.

        Args:
            name: of the operator, with its overload.
            phase: of the step.
        """
        if name == HOOKS:
            return self.hook_seconds
        call = self.asked.get(name.partition(".")[0], self._usual_call) if self.asked else 0.0
        return call + self.hosts.get(phase, self.host_seconds)

    @functools.cached_property
    def _usual_call(self) -> float:
        return statistics.median(self.asked.values())


def gpu_device(gpu: Gpu, precision: str) -> Device:
    """Return the speed of a GPU in a precision."""
    host_seconds = SERVER_SECONDS if gpu.is_of_servers else HOST_SECONDS + LAUNCH_SECONDS
    half, reach = gpu.flops(precision), reach_of(gpu)
    return Device(gpu.fp32_flops, half, gpu.bandwidth, host_seconds, True, host_rate=gpu.host_rate, reach=reach)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Have torch compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def cpu_device(num_threads: int) -> Device:
    """Return the speed of this machine's CPU as it is now, measured in about half a second.

    Args:
        num_threads: of one rank.

    Returns:
        The rate of a product of matrices in fp32 and bf16, of a copy, of a small operator, and of those that are slower
        than a copy; the best of some rounds, since others may be at work.
    """
    with threads(num_threads):
        fp32, half = (_matmul_flops(dtype) for dtype in (torch.float32, torch.bfloat16))
        source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8)
        target, small = torch.ones_like(source), torch.ones(8)
        bandwidth = 2 * _COPIED_BYTES / best_seconds(lambda: target.copy_(source))
        launch = best_seconds(lambda: [small.add(1.0) for _ in range(_LAUNCHES)]) / _LAUNCHES
        hooked = hook_seconds()
        compiling = _compile_seconds() if has_bf16(torch.device("cpu")) else 0.0
        rates = operator_rates(bandwidth)
    _, fresh_rate = fresh_pages()
    return Device(
        fp32, half, bandwidth, launch, False, rates,
        source=MEASURED_NOW, fresh_rate=fresh_rate, compile_seconds=compiling, hook_seconds=hooked,
    )  # fmt: skip


@functools.cache
def fresh_pages() -> tuple[float, float]:
    """Time pages that the system gives anew, beside what is done with them.

    They come from the system itself: a heap that has room from earlier work would give pages that are not new.

    Returns:
        The seconds of a first touch, each of which brings one page; and bytes per second of memory that comes and goes:
        taking it back is a ninth of that time (a Xeon).
    """
    touched, faults = [], page_faults()
    for _ in range(FEW_ROUNDS):
        pages = mmap.mmap(-1, _FRESH_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        touched.append((*_touched(pages), best_seconds(pages.close, 1)))
    faults = page_faults() - faults
    first, again, back = (min(seconds) for seconds in zip(*touched, strict=True))
    given = max(first - again, 1e-9)
    return given * FEW_ROUNDS / max(faults, 1), float(_FRESH_BYTES / (given + back))


def _touched(pages: mmap.mmap) -> tuple[float, float]:
    """Return the seconds of filling pages for the first time, and again; no tensor is left that looks at them."""
    there = torch.frombuffer(pages, dtype=torch.uint8)
    first, again = (best_seconds(lambda: there.fill_(1), 1) for _ in range(2))
    return first, again


def _compile_seconds() -> float:
    """Return what a product in bf16 takes more at first than later, in shapes that a run is unlikely to have had."""
    right = torch.ones(_INNER, _INNER, dtype=torch.bfloat16)
    more = []
    for rows in range(_FIRST_ROWS, _FIRST_ROWS + 2 * _FRESH_SHAPES, 2):
        left = torch.ones(rows, _INNER, dtype=torch.bfloat16)
        first = best_seconds(lambda: left @ right, 1)  # noqa: B023  # called here and now
        more.append(first - best_seconds(lambda: left @ right, FEW_ROUNDS))  # noqa: B023
    return max(0.0, statistics.median(more))


def _matmul_flops(dtype: torch.dtype) -> float:
    left = torch.ones(_MATRIX, _MATRIX, dtype=dtype)
    right = torch.ones(_MATRIX, _MATRIX, dtype=dtype)
    return float(2 * _MATRIX**3 / best_seconds(lambda: left @ right))
