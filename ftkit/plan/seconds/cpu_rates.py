"""Measure this machine: every operator of some real steps is timed, and what the steps cost beside them.

The steps are `train_step` on small made models (`samples.py`), trained whole, with adapters and over 4-bit weights. A
dispatch mode takes the time of each operator where it runs: with the tensors that the operator before it has left in
the caches, and with memory that comes fresh from the system, which a product in a loop of its own would not show. What
a step takes beyond its operators (Python, modules, autograd, dispatch) is its host cost, spread over them. A large
product of each kind is added, since the models are small. All of it is timed in each precision that the processor
multiplies in: a product in bf16 says nothing of one in fp32, nor does a norm.
"""

import datetime
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ftkit.config.precision import SettledPrecision
from ftkit.engine.resolve import DTYPES
from ftkit.errors import DependencyError
from ftkit.machine.disk import cache_folder, read_rate, write_rate
from ftkit.machine.heap import trim
from ftkit.machine.process import ProcessContext, has_bf16, joined
from ftkit.models.kernels.foreign import DispatchMode
from ftkit.observe.operators import Work, op_key, work_of
from ftkit.observe.tape import OpKey
from ftkit.plan.seconds.calibration import Calibration, fingerprint, source_words
from ftkit.plan.seconds.looks import Kind, Look, keep_look, look_words
from ftkit.plan.seconds.samples import SAMPLES, Sample, stepper
from ftkit.plan.seconds.speed import Device, cpu_device, threads
from ftkit.plan.seconds.timed import Timed

MOST_SECONDS = 20.0
"""What a calibration may take, of the processor where one thread computes: by the clock it is longer beside others."""
_BEGIN_BY = 0.85
"""Of it; samples that have not begun by then are left out."""
_STEPS, _LOOKED, _TIMES = 1, 2, 3
"""Steps of a sample, bare and timed each: one of many, or alone; and large products of each kind."""
_MOST_WAITED = 0.05
"""Of a look, for a core or for the disk, if it is to be kept."""
_TRIAL_BYTES = 2**26
_LARGE = ((512, 2048, 2048), (2048, 512, 2048), (512, 2048, 16))
"""Rows, inner and columns of the products that are added: a layer's, that of a weight's gradient, an adapter's."""


def calibrate(tell: Callable[[str], None]) -> Calibration:
    """Measure this machine's CPU with the threads that torch has, and its disk.

    Args:
        tell: told of each sample that is timed.

    Returns:
        The figures.

    Raises:
        OSError: the cache, whose disk is tried, cannot be written.
    """
    begun = clock()
    num_threads = torch.get_num_threads()
    written, read = disk_rates()
    quick = cpu_device(num_threads)
    operators, host = _operators(tell, begun)
    date = today()
    device = replace(quick, host_seconds=host, rates={}, timed=operators, source=source_words(date))
    return Calibration(date, fingerprint(num_threads), device, read, written)


def look(num_threads: int, kind: Kind) -> Device:
    """Spend three to five seconds on steps of one small training, and return what they show of this machine's CPU.

    What `cpu_device` times in loops of its own is at its best, and steps take twice as long. The look is kept for later
    plans, unless other programs made several threads wait.

    Args:
        num_threads: of one rank.
        kind: of the training.
    """
    date, begun, worked = today(), time.perf_counter(), time.process_time()
    with threads(num_threads):
        device = replace(_look(kind), source=look_words(date))
    took = time.perf_counter() - begun
    waited = took - (time.process_time() - worked)
    # Several threads go by the clock: what other programs took meanwhile would be in all later plans.
    if num_threads == 1 or waited < _MOST_WAITED * took:
        keep_look(Look(date, kind, device), num_threads)
    trim()  # a process that cannot be copied has looked itself, and has yet to train
    return device


def _look(kind: Kind) -> Device:
    """Time steps of one kind of training; of LoRA where none of its method is among the samples."""
    stopwatch = Stopwatch()
    kinds = {(sample.method, sample.is_decoder): sample for sample in SAMPLES}
    sample = kinds.get((kind.method, kind.is_decoder), kinds["lora", kind.is_decoder])
    with stopwatch:
        for rows, inner, columns in _LARGE:
            _large_product(rows, inner, columns, DTYPES[kind.precision])
    with tempfile.TemporaryDirectory(prefix="ftkit-look-") as name:  # alone, whatever group this process is in
        host = _time_sample(replace(sample, precision=kind.precision), Path(name), stopwatch, _LOOKED)
    quick = cpu_device(torch.get_num_threads())
    return replace(quick, host_seconds=max(0.0, host), timed=stopwatch.operators())


def disk_rates() -> tuple[float, float]:
    """Return the bytes per second that the disk of the cache is written and read at.

    Raises:
        OSError: the cache cannot be written.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return write_rate(folder, _TRIAL_BYTES), read_rate(folder, _TRIAL_BYTES)


def today() -> str:
    """Return the day, such as 2026-11-26."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def _operators(tell: Callable[[str], None], begun: float) -> tuple[dict[tuple[str, str], list[Timed]], float]:
    """Time the samples and the large products; return the operators, and what each costs the host."""
    stopwatch, hosts = Stopwatch(), []
    samples = [replace(sample, precision=precision) for sample in SAMPLES for precision in _precisions()]
    with stopwatch:
        for dtype in map(DTYPES.__getitem__, _precisions()):
            for rows, inner, columns in _LARGE:
                _large_product(rows, inner, columns, dtype)
    with tempfile.TemporaryDirectory(prefix="ftkit-calibrate-") as name, joined(ProcessContext()):
        for number, sample in enumerate(samples):
            if clock() - begun > _BEGIN_BY * MOST_SECONDS:
                left_out = ", ".join(map(str, samples[number:]))
                tell(f"left out, since time is up: {left_out}")
                break
            tell(str(sample))
            try:
                hosts.append(_time_sample(sample, Path(name, str(number)), stopwatch, _STEPS))
            except DependencyError:
                tell(f"left out, since bitsandbytes is not there: {sample}")
    return stopwatch.operators(), max(0.0, statistics.median(hosts))


def _precisions() -> tuple[SettledPrecision, ...]:
    """Return what the processor multiplies in, that of runs which leave it open first."""
    return ("bf16", "fp32") if has_bf16(torch.device("cpu")) else ("fp32",)


class Stopwatch(DispatchMode):
    """A dispatch mode that takes the time of each operator.

    Attributes:
        calls: operators so far.
        seconds: that they took together.
    """

    def __init__(self) -> None:
        """Start with nothing timed."""
        super().__init__()
        self._seen: dict[OpKey, list[float]] = defaultdict(list)
        self.calls, self.seconds = 0, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and take its time."""
        begun = clock()
        out = func(*args, **(kwargs or {}))
        seconds = clock() - begun
        if work_of(func) is Work.SOME:
            self.calls += 1
            self.seconds += seconds
            for key, share in _keys(func.__name__, args, out):
                self._seen[key].append(share * seconds)
        return out

    def operators(self) -> dict[tuple[str, str], list[Timed]]:
        """Return the median of each operator at each size, by its name without overload and its dtype."""
        found: dict[tuple[str, str], list[Timed]] = defaultdict(list)
        for (name, flops, moved, dtype), seconds in self._seen.items():
            found[name.partition(".")[0], dtype].append(Timed(flops, moved, statistics.median(seconds)))
        return dict(found)


def _keys(name: str, args: tuple[Any, ...], out: Any) -> Iterator[tuple[OpKey, float]]:
    """Yield what a tape calls an operator, with its share of the time: of a list of parameters, one by one."""
    lists = [one for one in (*args, out) if isinstance(one, (list, tuple)) and one and isinstance(one[0], torch.Tensor)]
    if not name.startswith(("_fused", "_foreach")) or not lists:
        yield op_key(name, args, out), 1.0
        return
    total = sum(tensor.nbytes for one in lists for tensor in one)
    for parts in zip(*(one for one in lists if len(one) == len(lists[0])), strict=True):
        yield op_key(f"_fused{name}", parts, None), sum(one.nbytes for one in parts) / total


def clock() -> float:
    """Return seconds; of this thread alone where it computes alone, since others may have the core meanwhile."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _time_sample(sample: Sample, folder: Path, stopwatch: Stopwatch, num_steps: int) -> float:
    """Take steps by the clock and under the stopwatch, in turns; return what an operator costs the host."""
    step = stepper(sample, folder)
    step()  # the optimizer has no state yet
    hosts = []
    for _ in range(num_steps):
        begun = clock()
        step()
        whole, calls, seconds = clock() - begun, stopwatch.calls, stopwatch.seconds
        with stopwatch:
            step()
        hosts.append((whole - (stopwatch.seconds - seconds)) / (stopwatch.calls - calls))
    return statistics.median(hosts)


def _large_product(rows: int, inner: int, columns: int, dtype: torch.dtype) -> None:
    """Multiply under the stopwatch, three times with other sides, which no product has left in the caches."""
    lefts, rights = (
        [torch.ones(size, dtype=dtype) for _ in range(_TIMES)] for size in ((rows, inner), (inner, columns))
    )
    bias, total = torch.zeros(columns, dtype=dtype), torch.zeros(rows, columns, dtype=dtype)
    for left, right in zip(lefts, rights, strict=True):
        torch.mm(left, right)
        torch.addmm(bias, left, right)
        total.addmm_(left, right)
