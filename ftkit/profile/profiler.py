"""A configuration for a few real steps on the worst batch that is planned, measured every way that this machine can.

First two steps and an evaluation under the planner's recorder, which counts the live bytes of every tensor; then,
without it, warm-up and timed steps under the meter of `ftkit/observe/meter.py`, and an evaluation.
"""

import gc
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed, nn

from ftkit.config.tree import RunConfig
from ftkit.data.batching import MicroBatch, Shape
from ftkit.engine.assemble import Counts, assemble
from ftkit.engine.first_line import first_line
from ftkit.engine.protocol import Engine
from ftkit.engine.resolve import Devices, ResolvedRun, resolve
from ftkit.machine.memory import Snapshot, quiet_collector, release_memory
from ftkit.machine.process import ProcessContext, joined
from ftkit.machine.versions import device_name
from ftkit.models.build import check_positions, set_training
from ftkit.models.partitions import whole_shape
from ftkit.models.sources.gguf import as_safetensors
from ftkit.models.sources.source import Source, load_config, load_tokenizer, own_label_names, resolve_source
from ftkit.models.sources.start import settle_start
from ftkit.observe.meter import Meter, gather, known_flops, memory_figures
from ftkit.observe.peaks import CountedPeak, phase_peaks, timeline
from ftkit.observe.recorded import batch_tensors, layer_names, make_batches, record_steps, see_model
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role
from ftkit.plan.inputs.architectures import unseen_labels
from ftkit.plan.inputs.shapes import plan_shape
from ftkit.records.files import RECORD, SNAPSHOT, RecordWriter
from ftkit.records.schema import Measurement, PhaseMeasurement, Prediction, ResultLine, TimelineLine
from ftkit.step import step
from ftkit.step.observer import Observer, Phase

_COUNTED_STEPS = 2
"""The first step has no optimizer state yet; the second is like the rest."""
_LEARNING_RATE = 1e-5
_COUNTING = "counting"
"""The meter's phase of the counted steps, which take longer and hold the tape too; it is forgotten."""


@dataclass(frozen=True)
class Counted:
    """The recorder's counts on one rank."""

    phases: dict[Phase, CountedPeak]
    model_flops: int

    @property
    def worst(self) -> Phase:
        """The phase with the highest peak."""
        return max(self.phases, key=lambda phase: self.phases[phase].active_bytes)

    @property
    def peak(self) -> CountedPeak:
        """Its peak."""
        return self.phases[self.worst]


def profile_run(
    config: RunConfig,
    process: ProcessContext,
    folder: Path,
    prediction: Prediction | None = None,
    *,
    num_warmup: int = 1,
    num_timed: int = 5,
) -> None:
    """Run a configuration for a few steps and write its record.

    Args:
        config: the run.
        process: the place of this process; every process of the job calls this.
        folder: exists; the record goes there.
        prediction: what the plan said, for the record.
        num_warmup: steps before the timed ones.
        num_timed: steps that are timed.

    Raises:
        FtkitError: the configuration cannot be run here.
    """
    started = time.perf_counter()
    with joined(process), ExitStack() as at_the_end:
        if config.output.memory_snapshot:  # written when memory runs out, too
            at_the_end.callback(Snapshot(process.device).write, folder / SNAPSHOT.format(rank=process.rank))
        run = resolve(config, Devices.of(process))
        name, num_steps = device_name(process.device), num_warmup + num_timed
        log = at_the_end.enter_context(RecordWriter(folder / RECORD)) if process.is_main else None
        if log:
            log.write(first_line(folder.name, run, name, num_steps, prediction, "profile"))
        source = as_safetensors(resolve_source(config.model, config.task), lambda _: None)
        meter = Meter(process.device, every=1)
        shape = plan_shape(config, process.world_size)
        engine, counted, line, counts = _count(run, source, process, shape, meter)
        release_memory(process.device)  # the tape's place in the heap would count towards what is measured next
        meter.discard(_COUNTING)
        if log:
            log.write(line)
        seconds = _time(engine, meter, shape, num_warmup, num_timed)
        ranks = gather(meter, process)
        measurement = _measurement(memory_figures(ranks, process.device), _all_ranks(counted, process), process)
        peak = known_flops(name, run.precision, prediction)
        measurement = measurement.model_copy(
            update={**_speed_figures(shape, process, seconds), "num_parameters": counts.total,
                    "num_trainable_parameters": counts.trainable,
                    "model_flops_utilization": _utilization(counted.model_flops, seconds, peak)}
        )  # fmt: skip
        if log:
            log.write(
                ResultLine(
                    status="completed",
                    num_steps=_COUNTED_STEPS + num_steps,
                    train_seconds=sum(seconds),
                    total_seconds=time.perf_counter() - started,
                    measurement=measurement,
                )
            )


def _count(
    run: ResolvedRun, source: Source, process: ProcessContext, shape: Shape, meter: Meter
) -> tuple[Engine, Counted, TimelineLine, Counts]:
    """Build model and engine, run two steps and an evaluation, all under the recorder."""
    tokenizer = load_tokenizer(source)
    run = replace(run, config=settle_start(run.config, source, tokenizer))
    (kind, num_labels), names = unseen_labels(run.config), None
    if run.config.task == "sequence-classification":
        names = own_label_names(source) or [str(number) for number in range(num_labels)]
    architecture = load_config(source, names, tokenizer.pad_token_id, kind)
    recorder, layers = Recorder(device_type=process.device.type), {}
    with quiet_collector(), ExitStack() as watched:

        def watch(model: nn.Module) -> None:
            check_positions(model, shape.length)
            layers.update(layer_names(model))
            watched.enter_context(recorder.inside(model, layers))
            see_model(recorder, model, layers)

        assembled = assemble(run, source, architecture, process, before_engine=watch)
        engine = assembled.engine
        set_training(engine.model, True)
        gc.collect()  # what building left in cycles would count as held
        recorder.rename(engine.held_tensors())
        see_model(recorder, engine.model, layers)  # on an accelerator the weights have been copied since
        recorder.mark(Phase.LOAD)
        meter.enter(_COUNTING)
        micro_batches = _micro_batches(engine, shape)
        recorder.see(batch_tensors(micro_batches), Role.INPUT)
        tape = record_steps(engine, micro_batches, recorder, _COUNTED_STEPS)
        _evaluate(engine, micro_batches, recorder)
    set_training(engine.model, True)
    counted = Counted(phase_peaks(tape, layers), tape.model_flops(_COUNTED_STEPS))
    return engine, counted, timeline(tape, _COUNTED_STEPS, process.rank, layers), assembled.counts


def _evaluate(engine: Engine, micro_batches: list[MicroBatch], observer: Observer) -> None:
    """Run a forward as an evaluation does; the engine is left in evaluation mode."""
    set_training(engine.model, False)
    with torch.no_grad(), observer.during(Phase.EVALUATION):
        first = micro_batches[0]
        engine.logits(first) if first.target_places is None else engine.loss(first)


def _micro_batches(engine: Engine, shape: Shape) -> list[MicroBatch]:
    made = make_batches(engine.objective, shape)
    _spread_tokens([one.input_ids for one in made], engine.model)
    return [one.to(engine.device) for one in made]


def _spread_tokens(inputs: Sequence[torch.Tensor], model: nn.Module) -> None:
    """Make the tokens of micro-batches those of places all over the table, as texts do, so that its pages are read.

    Args:
        inputs: [B, T] each; written to.
        model: whose table is looked up.
    """
    num_rows = whole_shape(cast(Any, model).get_input_embeddings().weight)[0]
    for number, ids_BT in enumerate(inputs):
        stride = max(1, num_rows // ids_BT.numel())
        places = torch.arange(ids_BT.numel()) * stride + number * stride // len(inputs)
        ids_BT.copy_((places % num_rows).view_as(ids_BT))


def _time(engine: Engine, meter: Meter, shape: Shape, num_warmup: int, num_timed: int) -> list[float]:
    """Return the seconds of each timed step; one evaluation follows them."""
    micro_batches = _micro_batches(engine, shape)
    num_targets = sum(one.labels.numel() for one in micro_batches) * engine.process.world_size
    seconds = []
    for number in range(num_warmup + num_timed):
        begin = time.perf_counter()
        result = step.train_step(engine, micro_batches, num_targets, _LEARNING_RATE, meter)
        float(result.loss)  # waits for the device
        if number >= num_warmup:
            seconds.append(time.perf_counter() - begin)
    _evaluate(engine, micro_batches, meter)
    return seconds


def _all_ranks(counted: Counted, process: ProcessContext) -> list[Counted]:
    if process.world_size == 1:
        return [counted]
    ranks: list[Any] = [None] * process.world_size
    distributed.all_gather_object(ranks, counted)
    return ranks


def _measurement(figures: dict[str, Any], counted: list[Counted], process: ProcessContext) -> Measurement:
    """Join what the system's counters say with what the recorder counted; an allocator's own figure wins."""
    worst = max(counted, key=lambda rank: rank.peak.active_bytes)
    if figures["peak_active_bytes"] is None:
        figures |= {
            "peak_active_bytes": worst.peak.active_bytes,
            "active_source": "counted storages",
            "peak_phase": worst.worst,
        }
    figures |= {
        "phases": tuple(
            _joined(phase, counted[phase.rank].phases.get(Phase(phase.phase))) for phase in figures["phases"]
        ),
        "peak_breakdown": worst.peak.breakdown,
        "largest_tensors": worst.peak.largest,
    }
    return Measurement(device=device_name(process.device), **figures)


def _joined(phase: PhaseMeasurement, counted: CountedPeak | None) -> PhaseMeasurement:
    """Add to a phase what was counted of it."""
    if counted is None:
        return phase
    active = counted.active_bytes if phase.peak_active_bytes is None else phase.peak_active_bytes
    return phase.model_copy(
        update={
            "peak_active_bytes": active,
            "peak_breakdown": counted.breakdown,
            "largest_tensors": counted.largest,
        }
    )


def _speed_figures(shape: Shape, process: ProcessContext, seconds: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    samples = shape.batch * shape.num_micro_batches * process.world_size
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [median, median, median]
    return {
        "step_seconds": median,
        "step_seconds_spread": quartiles[2] - quartiles[0],
        "num_timed_steps": len(seconds),
        "samples_per_second": samples / median,
        "tokens_per_second": samples * shape.length / median,
    }


def _utilization(flops: int, seconds: list[float], peak: float | None) -> float | None:
    """Return the share of the device's peak that the model's own FLOPs took; None where the peak is not known."""
    return None if peak is None or not flops else flops / statistics.median(seconds) / peak
