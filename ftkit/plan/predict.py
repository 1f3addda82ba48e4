"""One configuration in, one Prediction out: trace, unroll, apply ZeRO, replay the allocator, take the time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ftkit.config.tree import RunConfig
from ftkit.data.batching import Shape
from ftkit.engine.resolve import EngineKind, ResolvedRun, resolve
from ftkit.models.build import build_empty_model
from ftkit.models.methods import method_of
from ftkit.observe.allocator import replay
from ftkit.observe.peaks import Peak, allocator_events, find_peak
from ftkit.observe.tape import Tape
from ftkit.plan import fallback as formula
from ftkit.plan.architectures import find_architecture
from ftkit.plan.shapes import Sequences, num_steps, plan_shape
from ftkit.plan.speed import StepTime, step_time
from ftkit.plan.target import Target
from ftkit.plan.tracing.layer_choice import ShallowModel, choose_layers
from ftkit.plan.tracing.trace import UntraceableModelError, count_weights, trace
from ftkit.plan.tracing.unroll import NotAlikeError, unroll
from ftkit.plan.weights import weights_reason
from ftkit.plan.zero import share as zero
from ftkit.records.schema import Prediction
from ftkit.step.observer import Phase
from ftkit.units import format_bytes

Tapes = dict[tuple[Any, ...], tuple[Tape, str]]
"""Traces of one model, by what decides them."""
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
    target: Target,
    architecture: Any = None,
    *,
    sequences: Sequences | None = None,
    exact: bool = False,
    tapes: Tapes | None = None,
) -> Prediction:
    """Predict memory and speed of a configuration at a target.

    Args:
        config: the run.
        target: the devices.
        architecture: of the model; found by its name when None.
        sequences: the data; None: not at hand.
        exact: trace every layer.
        tapes: what was traced before and is looked up here first; this call's tape is put in.

    Returns:
        The prediction.

    Raises:
        ModelError: the model is unknown, or not for this task or method, or its step can be neither traced nor computed
            by a formula.
        ConfigError: the settings do not go together, or the batch cannot be cut.
        DeviceError: the target cannot compute in the precision asked for.
    """
    run = resolve(config, target.devices)
    config, precision = run.config, run.precision
    with _quiet():
        architecture = find_architecture(config) if architecture is None else architecture
        sequences = sequences or Sequences.unseen(config)
        shape = plan_shape(config, target.num_devices, sequences)
        steps = num_steps(config, sequences.num)
        try:
            tape, basis = _known_tape(run, architecture, shape, target, exact, {} if tapes is None else tapes)
        except UntraceableModelError as error:
            if (size := formula.missing_size(architecture)) is not None:
                raise UntraceableModelError(f"{error}; and no formula stands in: it has no {size}") from error
            return _by_formula(run, architecture, shape, target, str(error), steps)
    counts = Counts.of(tape.weights, run.dtype)
    sharing = zero.share_out(tape, run, counts.trainable)
    on_cuda = target.device_type == "cuda"
    peak = find_peak(sharing.tape) if on_cuda else find_peak(sharing.tape, int)
    events = allocator_events(sharing.tape)
    grows = config.engine.expandable_segments
    reserved = replay(events, expandable=grows).peak_reserved_bytes
    room = target.memory_bytes - target.context_bytes
    # What fits without asking for anything back needs no second replay.
    fits = (reserved <= room or replay(events, room, expandable=grows).fits) if on_cuda else peak.active_bytes <= room
    process = _process_bytes(run, target, peak, reserved, sharing, counts)
    host = target.num_devices * (CUDA_HOST_BYTES + counts.load_bytes + sharing.host_bytes if on_cuda else process)
    time = step_time(tape, target.device(precision), shape.num_micro_batches, shape.traced.num_micro_batches)
    pinned = sharing.pinned_bytes * target.num_devices
    reason = _reason(target, fits, peak, reserved, host, pinned)
    may_grow = on_cuda and not fits and not grows and peak.active_bytes <= room
    if may_grow and replay(events, room, expandable=True).fits:
        reason = (
            f"{reason}, with segments of fixed size; with growing segments it fits (engine.expandable_segments=true)"
        )
    return Prediction(
        basis=basis,
        fits=reason is None,
        reason=reason,
        **_size_figures(run, steps, shape, target, counts),
        **_memory_figures(target, peak, reserved, process, host),
        pinned_bytes=pinned,
        nvme_bytes=sharing.nvme_bytes * target.num_devices,
        **_speed_figures(config, shape, target, precision, _with_wire(time, sharing, target), steps),
    )


def _by_formula(
    run: ResolvedRun, architecture: Any, shape: Shape, target: Target, why: str, steps: int | None
) -> Prediction:
    """Predict memory, not speed, for a model whose code cannot be traced."""
    config, dtype = run.config, run.dtype
    counts = Counts.of(count_weights(build_empty_model(config, architecture, dtype), {}), dtype)
    itemsize = dtype.itemsize
    parts = formula.breakdown(
        config, architecture, shape.batch, shape.length, itemsize, (counts.total, counts.trainable)
    )
    peak = Peak(parts.total_bytes, parts, Phase.BACKWARD, 2, "", None)
    process = _process_bytes(run, target, peak, peak.active_bytes, None, counts)
    host = target.num_devices * (CUDA_HOST_BYTES + counts.load_bytes if target.device_type == "cuda" else process)
    fits = peak.active_bytes <= target.memory_bytes - target.context_bytes
    reason = _reason(target, fits, peak, peak.active_bytes, host, 0)
    return Prediction(
        basis=f"by formula (Korthikanti et al. 2022): {why}",
        fits=reason is None,
        reason=reason,
        **_size_figures(run, steps, shape, target, counts),
        **_memory_figures(target, peak, peak.active_bytes, process, host),
    )


def disk_bytes(config: RunConfig, counts: Counts, itemsize: int) -> int:
    """Return what a run keeps: two checkpoints (masters and moments in fp32), the best masters, and the result.

    The result is in the compute dtype: the adapters where there are some, else all weights.
    """
    result = method_of(config).stored_parameters(counts.total, counts.trainable)
    return counts.trainable * (2 * 12 + 4) + result * itemsize


def _known_tape(
    run: ResolvedRun, architecture: Any, shape: Shape, target: Target, exact: bool, tapes: Tapes
) -> tuple[Tape, str]:
    """Trace, unless the same step was traced before: ZeRO and the number of ranks do not change the trace."""
    config = run.config
    sections = (config.model, config.method, config.optimizer.name)
    key = (config.task, *map(str, sections), shape.traced, target.gpu, exact, run.partitions_weights)
    if key not in tapes:
        tapes[key] = _tape(run, architecture, shape, target, exact)
    return tapes[key]


def _tape(run: ResolvedRun, architecture: Any, shape: Shape, target: Target, exact: bool) -> tuple[Tape, str]:
    def traced(model: ShallowModel) -> Tape:
        return trace(
            model.config,
            model.architecture,
            run.dtype,
            shape.traced,
            target.gpu,
            device_type=target.device_type,
            checkpointed=model.checkpointed,
            sees_modules=run.partitions_weights,
        )

    model = choose_layers(run.config, architecture, exact=exact)
    try:
        tape = unroll(traced(model), model.kept, model.kinds)
    except NotAlikeError:
        model = choose_layers(run.config, architecture, exact=True)
        tape = traced(model)
    return tape, "traced whole" if model.is_whole else "traced"


def _process_bytes(
    run: ResolvedRun, target: Target, peak: Peak, reserved: int, sharing: zero.RankShare | None, counts: Counts
) -> int:
    """Return what one process is seen to hold at its peak: of the device, or on a CPU resident."""
    if target.device_type == "cuda":
        return reserved + target.context_bytes
    runtime = RUNTIME_BYTES + (DEEPSPEED_RUNTIME_BYTES if run.engine is EngineKind.DEEPSPEED else 0)
    if sharing is None:
        return runtime + max(peak.active_bytes, counts.load_bytes)
    comes_and_goes = peak.active_bytes - dict(sharing.tape.at_marks()[:1]).get(Phase.LOAD, 0)
    kept = min(HEAP_BYTES, comes_and_goes)
    return runtime + max(peak.active_bytes + sharing.host_bytes + kept, counts.load_bytes)


def _with_wire(time: StepTime, sharing: zero.RankShare, target: Target) -> StepTime:
    link = target.gpu.link if target.gpu is not None else 10e9
    return StepTime(time.seconds + sharing.wire_bytes / link + sharing.offload_seconds, time.flops)


def _size_figures(run: ResolvedRun, steps: int | None, shape: Shape, target: Target, counts: Counts) -> dict[str, Any]:
    return {
        "device": target.name,
        "budget_bytes": target.memory_bytes,
        "context_bytes": target.context_bytes,
        "precision": run.precision,
        "micro_batch_size": shape.batch,
        "num_micro_batches": shape.num_micro_batches,
        "sequence_length": shape.length,
        "num_parameters": counts.total,
        "num_trainable_parameters": counts.trainable,
        "disk_bytes": disk_bytes(run.config, counts, run.dtype.itemsize),
        "num_steps": steps,
    }


def _memory_figures(target: Target, peak: Peak, reserved: int, process: int, host: int) -> dict[str, Any]:
    on_cuda = target.device_type == "cuda"
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
    config: RunConfig, shape: Shape, target: Target, precision: str, time: StepTime, steps: int | None
) -> dict[str, Any]:
    sequences = config.batch.global_batch_size
    device = target.device(precision)
    peak_flops = device.fp32_flops if precision == "fp32" else device.half_flops
    figures = {} if steps is None else {"total_seconds": steps * time.seconds}
    return figures | {
        "step_seconds": time.seconds,
        "samples_per_second": sequences / time.seconds,
        "tokens_per_second": sequences * shape.length / time.seconds,
        "device_flops": peak_flops,
        "model_flops_utilization": time.flops / time.seconds / peak_flops,
    }


def _reason(target: Target, fits: bool, peak: Peak, reserved: int, host: int, pinned: int) -> str | None:
    if not fits:
        need = format_bytes(max(reserved, peak.active_bytes) + target.context_bytes)
        if (alone := weights_reason(target, peak.breakdown.parameter_bytes)) is not None:
            return f"{alone}; with the rest it needs {need}"
        return f"needs {need} of the {format_bytes(target.memory_bytes)} of {target.name}"
    if target.ram_bytes is not None and host > target.ram_bytes:
        return f"needs {format_bytes(host)} of host memory, and there are {format_bytes(target.ram_bytes)}"
    if target.locked_bytes is not None and pinned > target.locked_bytes:
        return f"pins {format_bytes(pinned)} of host memory, and the shell's limit (ulimit -l) is lower"
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what transformers says about saving configurations that are never saved."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
