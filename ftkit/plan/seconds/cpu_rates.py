"""Measure this machine: every operator of some real steps is timed, and what the steps cost beside them.

The steps are `train_step` on small made models (`samples.py`), trained whole, with adapters and over 4-bit weights. A
dispatch mode takes the time of each operator where it runs: with the tensors that the operator before it has left in
the caches, and with memory that comes fresh from the system, which a product in a loop of its own would not show. What
a phase takes beyond its operators (Python, modules, autograd, dispatch) is its host cost, spread over them: a forward
has three times a backward's. Python around modules, as DeepSpeed's, is timed in a step of its own (`hooks.py`). Large
products are added, since the models are small, and what DeepSpeed does to all gradients at once. All of it is timed in
each precision that the processor multiplies in: a product in bf16 says nothing of one in fp32, nor does a norm. In the
second of them half as many tokens are as many bytes; Python is the same there, and so is not timed again.
"""

import datetime
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ftkit.config.precision import SettledPrecision
from ftkit.engine.resolve import DTYPES
from ftkit.errors import DependencyError
from ftkit.machine.disk import cache_folder, read_rate, write_rate
from ftkit.machine.heap import trim
from ftkit.machine.process import ProcessContext, has_bf16, joined
from ftkit.plan.seconds.calibration import Calibration, fingerprint, source_words
from ftkit.plan.seconds.looks import Kind, Look, keep_look, look_words
from ftkit.plan.seconds.loops import clock
from ftkit.plan.seconds.samples import SAMPLES, Sample, stepper
from ftkit.plan.seconds.speed import Device, cpu_device, threads
from ftkit.plan.seconds.stopwatch import Parts, Seen

MOST_SECONDS = 20.0
"""What a calibration may take, of the processor where one thread computes: by the clock it is longer beside others."""
_BEGIN_BY = 0.95
"""Of it; samples that have not begun by then are left out."""
_STEPS, _LOOKED, _TIMES = 1, 2, 3
"""Steps of a sample, bare and timed each: one of many, or alone; and large products of each kind."""
_ASKED = 3
"""Samples that show what asking for operators costs; the others have the same Python."""
_MOST_WAITED = 0.05
"""Of a look, for a core or for the disk, if it is to be kept."""
_TRIAL_BYTES = 2**26
_FLAT_BYTES = 3 * 2**24
"""Of a flat tensor of gradients: 16 MiB still come from the last cache of a large server."""
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
    date = today()
    device = replace(_operators(tell, begun).put_into(quick), rates={}, source=source_words(date))
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
    """Time steps of one kind of training, with the model of LoRA's sample where none of it is among the samples."""
    seen = Seen()
    kinds = {(sample.method, sample.is_decoder): sample for sample in SAMPLES}
    sample = kinds.get((kind.method, kind.is_decoder)) or replace(kinds["lora", kind.is_decoder], method=kind.method)
    with seen.stopwatch:
        _large(DTYPES[kind.precision])
    with tempfile.TemporaryDirectory(prefix="ftkit-look-") as name:  # alone, whatever group this process is in
        _time_sample(replace(sample, precision=kind.precision), Path(name), seen, _LOOKED)
    return seen.put_into(cpu_device(torch.get_num_threads()))


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


def _operators(tell: Callable[[str], None], begun: float) -> Seen:
    """Time the samples and what is large."""
    seen = Seen()
    samples = [
        replace(sample, precision=precision, divided=1 + number, is_one_of_many=True)
        for number, precision in enumerate(_precisions())
        for sample in SAMPLES
    ]
    with seen.stopwatch:
        for precision in _precisions():
            _large(DTYPES[precision])
    with tempfile.TemporaryDirectory(prefix="ftkit-calibrate-") as name, joined(ProcessContext()):
        for number, sample in enumerate(samples):
            if clock() - begun > _BEGIN_BY * MOST_SECONDS:
                left_out = ", ".join(map(str, samples[number:]))
                tell(f"left out, since time is up: {left_out}")
                break
            tell(str(sample))
            try:
                _time_sample(sample, Path(name, str(number)), seen, _STEPS, asks=number < _ASKED)
            except DependencyError:
                tell(f"left out, since bitsandbytes is not there: {sample}")
    return seen


def _precisions() -> tuple[SettledPrecision, ...]:
    """Return what the processor multiplies in, that of runs which leave it open first."""
    return ("bf16", "fp32") if has_bf16(torch.device("cpu")) else ("fp32",)


def _time_sample(sample: Sample, folder: Path, seen: Seen, num_steps: int, *, asks: bool = True) -> None:
    """Take steps by the clock and under the stopwatch, in turns; before, one in which the optimizer makes its state.

    Args:
        sample: whose steps.
        folder: gets the model's files.
        seen: is told.
        num_steps: of each.
        asks: whether what asking for operators costs is wanted, which takes the steps by the clock.
    """
    steps, stopwatch = stepper(sample, folder), seen.stopwatch
    # Each part begins with caches that something else has filled, as it does in a model that is larger than they are:
    # between two uses of a layer's weights all other layers are computed.
    empty_caches = torch.zeros(_FLAT_BYTES // 4).zero_
    # In half precision that step compiles a kernel for each shape.
    first = 1 if sample.precision == "fp32" and not asks else 0
    steps.take(taken=slice(first, None))
    if asks:  # hooks cost more the larger the operators between them are, and runs have large ones
        with seen.hooks.around(steps.engine.model):
            steps.take(taken=slice(1))
    for _ in range(num_steps):
        bare, watched = Parts(stopwatch, empty_caches), Parts(stopwatch, empty_caches)
        if asks:
            steps.take(bare)
        with stopwatch:
            steps.take(watched)
        if asks:
            seen.beside(bare.each, watched.each)


def _large(dtype: torch.dtype) -> None:
    """Run what is larger than in the samples, for a stopwatch that is at work."""
    for rows, inner, columns in _LARGE:
        _large_product(rows, inner, columns, dtype)
    _flat(torch.ones(_FLAT_BYTES // dtype.itemsize, dtype=dtype))


def _flat(gradients: torch.Tensor) -> None:
    """Do what DeepSpeed does to gradients that lie one behind the other: average, copy, sum, look for the largest."""
    single, halves = torch.zeros(_FLAT_BYTES // 4), gradients.chunk(2)
    for _ in range(_TIMES):
        torch.cat(halves).div_(1)
        single.copy_(gradients[: single.numel()])
        gradients[: single.numel()].copy_(single)
        gradients.clone().copy_(gradients)
        single[: single.numel() // 2].double().norm()
        single.norm()
        single.mul_(1.0)
        single.zero_()
        single.amax()
        single.amin()


def _large_product(rows: int, inner: int, columns: int, dtype: torch.dtype) -> None:
    """Multiply three times with other sides, which no product has left in the caches."""
    lefts, rights = (
        [torch.ones(size, dtype=dtype) for _ in range(_TIMES)] for size in ((rows, inner), (inner, columns))
    )
    bias, total = torch.zeros(columns, dtype=dtype), torch.zeros(rows, columns, dtype=dtype)
    for left, right in zip(lefts, rights, strict=True):
        torch.mm(left, right)
        torch.addmm(bias, left, right)
        total.addmm_(left, right)
