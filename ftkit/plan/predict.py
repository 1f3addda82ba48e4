"""One configuration in, one Prediction out: trace, unroll, apply ZeRO, replay the allocator, take the time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ftkit.config import Lora, RunConfig
from ftkit.model import build_empty_model
from ftkit.plan import formula, zero
from ftkit.plan.allocator import replay
from ftkit.plan.architectures import find_architecture
from ftkit.plan.depth import Depth, shallow
from ftkit.plan.place import Place
from ftkit.plan.shapes import Sequences, Shape, num_steps, plan_shape
from ftkit.plan.speed import StepTime, step_time
from ftkit.plan.tape import LOAD, Tape
from ftkit.plan.timeline import Peak, allocator_events, find_peak
from ftkit.plan.trace import UntraceableModelError, count_weights, trace
from ftkit.plan.unroll import NotAlikeError, unroll
from ftkit.records import Prediction
from ftkit.units import format_bytes

Tapes = dict[tuple[Any, ...], tuple[Tape, str]]
"""Traces of one model, by what decides them."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
RUNTIME_BYTES = 520 * 10**6
"""Resident memory of one process on a CPU before any weight: Python, torch, transformers, peft, and what a step
compiles (seen in /proc/self/status after a step, weights and free heap taken off)."""
DEEPSPEED_RUNTIME_BYTES = 50 * 10**6
"""What DeepSpeed and the process group add to it."""
HEAP_BYTES = 300 * 10**6
"""The C library keeps freed blocks below 32 MiB for later: as much again as comes and goes in a step, and about this
much at most (seen as what malloc_trim gives back after three steps)."""
CUDA_HOST_BYTES = 2**30
"""Host memory of one process with CUDA's libraries; a guess, since none has been measured."""


@dataclass(frozen=True)
class Counts:
    """Weights of the deep model.

    Attributes:
        total: all of them.
        trainable: those that train.
        load_bytes: bytes of all in the compute dtype, as they are loaded.
    """

    total: int
    trainable: int
    load_bytes: int

    @classmethod
    def of(cls, weights: dict[int | None, tuple[int, int]], dtype: torch.dtype) -> "Counts":
        """Add up what `trace.count_weights` found."""
        total, trainable = map(sum, zip(*weights.values(), strict=True))
        return cls(total, trainable, total * dtype.itemsize)


def predict(
    config: RunConfig,
    place: Place,
    architecture: Any = None,
    *,
    sequences: Sequences | None = None,
    exact: bool = False,
    tapes: Tapes | None = None,
) -> Prediction:
    """Predict memory and speed of a configuration at a place.

    Args:
        config: the run.
        place: the devices.
        architecture: of the model; found by its name when None.
        sequences: the data; None: not at hand.
        exact: trace every layer.
        tapes: what was traced before and is looked up here first; this call's tape is put in.

    Returns:
        The prediction.

    Raises:
        ModelError: the model is unknown, or not for this task or method.
        ConfigError: the place cannot compute in the precision asked for, or the batch cannot be cut.
    """
    with _quiet():
        architecture = find_architecture(config) if architecture is None else architecture
        precision = place.resolve_precision(config.model.precision)
        sequences = sequences or Sequences.unseen(config)
        shape = plan_shape(config, place.num_devices, sequences)
        steps = num_steps(config, sequences.num)
        try:
            tape, basis = _known_tape(
                config, architecture, precision, shape, place, exact, {} if tapes is None else tapes
            )
        except UntraceableModelError as error:
            return _by_formula(config, architecture, precision, shape, place, str(error), steps)
    counts = Counts.of(tape.weights, DTYPES[precision])
    sharing = zero.share_out(tape, config, precision, place, counts.trainable)
    on_cuda = place.device_type == "cuda"
    peak = find_peak(sharing.tape) if on_cuda else find_peak(sharing.tape, int)
    events = allocator_events(sharing.tape)
    grows = config.engine.expandable_segments
    reserved = replay(events, expandable=grows).peak_reserved_bytes
    room = place.memory_bytes - place.context_bytes
    # What fits without asking for anything back needs no second replay.
    fits = (reserved <= room or replay(events, room, expandable=grows).fits) if on_cuda else peak.active_bytes <= room
    process = _process_bytes(config, place, peak, reserved, sharing, counts)
    host = place.num_devices * (CUDA_HOST_BYTES + counts.load_bytes + sharing.host_bytes if on_cuda else process)
    time = step_time(tape, place.device(precision), shape.num_micro_batches, shape.traced.num_micro_batches)
    pinned = sharing.pinned_bytes * place.num_devices
    reason = _reason(place, fits, peak, reserved, host, pinned)
    may_grow = on_cuda and not fits and not grows and peak.active_bytes <= room
    if may_grow and replay(events, room, expandable=True).fits:
        reason = f"{reason}, in segments of fixed size; in ones that grow it fits (engine.expandable_segments=true)"
    return Prediction(
        basis=basis,
        fits=reason is None,
        reason=reason,
        **_size_figures(config, steps, shape, place, precision, counts),
        **_memory_figures(place, peak, reserved, process, host),
        pinned_bytes=pinned,
        nvme_bytes=sharing.nvme_bytes * place.num_devices,
        **_speed_figures(config, shape, place, precision, _with_wire(time, sharing, place), steps),
    )


def _by_formula(  # noqa: PLR0913  # what a traced prediction has too
    config: RunConfig,
    architecture: Any,
    precision: str,
    shape: Shape,
    place: Place,
    why: str,
    steps: int | None,
) -> Prediction:
    """Predict memory, not speed, for a model whose code cannot be traced."""
    dtype = DTYPES[precision]
    counts = Counts.of(count_weights(build_empty_model(config, architecture, dtype), {}), dtype)
    itemsize = dtype.itemsize
    parts = formula.breakdown(
        config, architecture, shape.batch, shape.length, itemsize, (counts.total, counts.trainable)
    )
    peak = Peak(parts.total_bytes, parts, "backward", 2, "", None)
    process = _process_bytes(config, place, peak, peak.active_bytes, None, counts)
    host = place.num_devices * (CUDA_HOST_BYTES + counts.load_bytes if place.device_type == "cuda" else process)
    fits = peak.active_bytes <= place.memory_bytes - place.context_bytes
    reason = _reason(place, fits, peak, peak.active_bytes, host, 0)
    return Prediction(
        basis=f"by formula (Korthikanti et al. 2022): {why}",
        fits=reason is None,
        reason=reason,
        **_size_figures(config, steps, shape, place, precision, counts),
        **_memory_figures(place, peak, peak.active_bytes, process, host),
    )


def disk_bytes(config: RunConfig, counts: Counts, itemsize: int) -> int:
    """Return what a run keeps: two checkpoints (masters and moments in fp32), the best masters, and the result.

    The result is in the compute dtype: the adapters where there are some, else all weights.
    """
    result = counts.trainable if isinstance(config.method, Lora) else counts.total
    return counts.trainable * (2 * 12 + 4) + result * itemsize


def _known_tape(  # noqa: PLR0913  # the parts of a key
    config: RunConfig, architecture: Any, precision: str, shape: Shape, place: Place, exact: bool, tapes: Tapes
) -> tuple[Tape, str]:
    """Trace, unless the same step was traced before: ZeRO and the number of ranks leave it as it is."""
    sections = (config.model, config.method, config.optimizer.name)
    visits = zero.partitions_weights(config)
    key = (config.task, *(str(one) for one in sections), precision, shape.traced, place.gpu, exact, visits)
    if key not in tapes:
        tapes[key] = _tape(config, architecture, precision, shape, place, exact)
    return tapes[key]


def _tape(  # what decides the step
    config: RunConfig, architecture: Any, precision: str, shape: Shape, place: Place, exact: bool
) -> tuple[Tape, str]:
    def run(depth: Depth) -> Tape:
        return trace(
            depth.config,
            depth.architecture,
            DTYPES[precision],
            shape.traced,
            place.gpu,
            device_type=place.device_type,
            checkpointed=depth.checkpointed,
        )

    depth = shallow(config, architecture, exact=exact)
    try:
        tape = unroll(run(depth), depth.kept, depth.kinds)
    except NotAlikeError:
        depth = shallow(config, architecture, exact=True)
        tape = run(depth)
    return tape, "traced whole" if len(depth.kept) == len(depth.kinds) else "traced"


def _process_bytes(  # what each device's figure is made of
    config: RunConfig, place: Place, peak: Peak, reserved: int, sharing: zero.Sharing | None, counts: Counts
) -> int:
    """Return what one process is seen to hold at its peak: of the device, or on a CPU resident."""
    if place.device_type == "cuda":
        return reserved + place.context_bytes
    runtime = RUNTIME_BYTES + (DEEPSPEED_RUNTIME_BYTES if zero.uses_deepspeed(config) else 0)
    if sharing is None:
        return runtime + max(peak.active_bytes, counts.load_bytes)
    comes_and_goes = peak.active_bytes - dict(sharing.tape.at_marks()[:1]).get(LOAD, 0)
    kept = min(HEAP_BYTES, comes_and_goes)
    return runtime + max(peak.active_bytes + sharing.host_bytes + kept, counts.load_bytes)


def _with_wire(time: StepTime, sharing: zero.Sharing, place: Place) -> StepTime:
    link = place.gpu.link if place.gpu is not None else 10e9
    return StepTime(time.seconds + sharing.wire_bytes / link + sharing.offload_seconds, time.flops)


def _size_figures(  # what decides them
    config: RunConfig, steps: int | None, shape: Shape, place: Place, precision: str, counts: Counts
) -> dict[str, Any]:
    return {
        "device": place.name,
        "budget_bytes": place.memory_bytes,
        "context_bytes": place.context_bytes,
        "precision": precision,
        "micro_batch_size": shape.batch,
        "num_micro_batches": shape.num_micro_batches,
        "sequence_length": shape.length,
        "num_parameters": counts.total,
        "num_trainable_parameters": counts.trainable,
        "disk_bytes": disk_bytes(config, counts, DTYPES[precision].itemsize),
        "num_steps": steps,
    }


def _memory_figures(place: Place, peak: Peak, reserved: int, process: int, host: int) -> dict[str, Any]:
    on_cuda = place.device_type == "cuda"
    return {
        "peak_active_bytes": peak.active_bytes,
        "peak_reserved_bytes": reserved if on_cuda else None,
        "peak_process_bytes": process,
        "peak_breakdown": peak.breakdown,
        "peak_phase": peak.phase,
        "peak_module": peak.module or None,
        "peak_layer": peak.layer,
        "host_bytes": host,
    }


def _speed_figures(
    config: RunConfig, shape: Shape, place: Place, precision: str, time: StepTime, steps: int | None
) -> dict[str, Any]:
    sequences = config.batch.global_batch_size
    device = place.device(precision)
    peak_flops = device.fp32_flops if precision == "fp32" else device.half_flops
    figures = {} if steps is None else {"total_seconds": steps * time.seconds}
    return figures | {
        "step_seconds": time.seconds,
        "samples_per_second": sequences / time.seconds,
        "tokens_per_second": sequences * shape.length / time.seconds,
        "device_flops": peak_flops,
        "model_flops_utilization": time.flops / time.seconds / peak_flops,
    }


def _reason(place: Place, fits: bool, peak: Peak, reserved: int, host: int, pinned: int) -> str | None:
    if not fits:
        need = format_bytes(max(reserved, peak.active_bytes) + place.context_bytes)
        have = f"the {format_bytes(place.memory_bytes)} of {place.name}"
        weights = peak.breakdown.parameter_bytes
        if weights > place.memory_bytes - place.context_bytes:
            taken = f" less the {format_bytes(place.context_bytes)} of CUDA's context" if place.context_bytes else ""
            return (
                f"its weights alone are {format_bytes(weights)}, more than {have}{taken}; with the rest it needs {need}"
            )
        return f"needs {need} of {have}"
    if place.ram_bytes is not None and host > place.ram_bytes:
        return f"needs {format_bytes(host)} of host memory, and there are {format_bytes(place.ram_bytes)}"
    if place.locked_bytes is not None and pinned > place.locked_bytes:
        return f"pins {format_bytes(pinned)} of host memory, and the shell's limit (ulimit -l) is lower"
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from talking about configurations that nobody will save."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
