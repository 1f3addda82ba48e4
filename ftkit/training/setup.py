"""Set up a run: the job, and what it is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ftkit.config.idle import KnownOfRun, idle_settings
from ftkit.config.paths import with_absolute_paths
from ftkit.config.tree import RunConfig
from ftkit.data.arrays import PreparedData
from ftkit.data.batching import Padding, check_cut, count_steps
from ftkit.data.labels.weights import class_weights
from ftkit.engine.assemble import Counts, build_engine
from ftkit.engine.protocol import Engine
from ftkit.engine.resolve import EngineKind, ResolvedRun, resolve
from ftkit.machine.memory import release_memory
from ftkit.machine.process import ProcessContext, first_decides
from ftkit.machine.versions import versions
from ftkit.models.activations.recompute import set_recompute
from ftkit.models.build import build_model, check_positions, check_tokens
from ftkit.models.objective import objective_of
from ftkit.models.sources.source import Source
from ftkit.models.streaming.stream import place
from ftkit.observe.meter import Meter
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.predicted import AnyPrediction
from ftkit.plan.preflight import plan_first
from ftkit.step.observer import Phase
from ftkit.training.checkpoints import checkpoint
from ftkit.training.checkpoints.same_run import resumable_part
from ftkit.training.checkpoints.writer import Writer
from ftkit.training.checks.first_look import check_disk, look_first
from ftkit.training.checks.loss_form import settle_loss
from ftkit.training.checks.padding import settle_padding
from ftkit.training.reporters import Reporter
from ftkit.training.results.folder import describe_saving, open_folder, shards_checkpoints
from ftkit.training.standby import Standby, needed
from ftkit.training.state import Progress, best_steps
from ftkit.training.trunk.once import Whole, compute_once, wants_trunk
from ftkit.training.trunk.warm import Key, find_warm

_WARMUP_WARNING = 1 / 3
_PADDING = "padding"


@dataclass(frozen=True)
class Job:
    """A run that is ready to train."""

    run: ResolvedRun
    process: ProcessContext
    folder: Path
    source: Source
    tokenizer: Any
    data: PreparedData
    engine: Engine
    num_steps: int
    counts: Counts
    meter: Meter
    prediction: AnyPrediction | None
    padding: Padding
    load_whole: Callable[[], nn.Module] | None
    """Loads the model anew, where the engine's runs from above its trunk; None where the engine's is whole."""
    is_sharded: bool = False
    """Whether each rank writes its own part of a checkpoint."""
    standby: Standby | None = None
    """A copy of this process that will open what is saved; None: a fresh one does."""
    writer: Writer = field(default_factory=Writer)
    """Writes checkpoints while the steps go on."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration, with every `auto` settled."""
        return self.run.config

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence of any split."""
        return self.data.longest

    @cached_property
    def target_weights(self) -> NDArray[np.int64] | NDArray[np.float64]:
        """The weight of the targets of each training sequence, [N]."""
        return self.engine.objective.target_weights(self.data.train)

    def state(self, progress: Progress) -> checkpoint.TrainingState:
        """Return what a checkpoint says of this run."""
        training = self.config.training
        return checkpoint.TrainingState(
            step=progress.step,
            num_steps=self.num_steps,
            fingerprint=self.data.fingerprint,
            config=resumable_part(self.config.model_dump(mode="json")),
            versions=versions(),
            validations=dict(progress.validations),
            best_steps=best_steps(progress.validations, training.best_metric)[: training.keep_best],
            train_seconds=progress.train_seconds,
            total_seconds=progress.total_seconds,
            owes_validation=progress.owes_validation,
        )


def prepare(
    config: RunConfig,
    process: ProcessContext,
    reporter: Reporter,
    *,
    resume: bool = False,
    started: float | None = None,
) -> Job:
    """Load data and model and put them onto the engine; raises as `train_run` does.

    What can be refused is refused before what takes longer: the settings, the folder, the weights, the data, the plan.
    `started` is when the run began, by `time.perf_counter`; None: not known.
    """
    note = reporter.note if process.is_main else _silent
    config = with_absolute_paths(config)
    found = look_first(config, process, note, is_resumed=resume)
    source, tokenizer, data, architecture = found.source, found.tokenizer, found.data, found.architecture
    meter = Meter(process.device)
    asked = replace(found.run, config=_with_weights(found.run.config, data, note))
    num_steps = _count_steps(config, asked, data, note)
    key = Key.of(asked, process, source, architecture, data, num_steps)
    warm = find_warm(key, process, note)
    plan = partial(plan_first, process=process, architecture=architecture, sequences=Sequences.of(data), note=note)
    is_named, is_cached = config.batch.is_named, warm is not None
    planned, prediction = plan(asked.config, is_cached=is_cached, is_cut_named=is_named, started=started)
    first_decides(process, lambda: check_disk(config, None if prediction is None else prediction.job, note))
    check_cut(planned.batch, data.longest)
    run = resolve(planned, asked.devices)
    folder = first_decides(process, lambda: open_folder(config, is_resumed=resume))
    load = partial(build_model, run.config, source, architecture, run.dtype)
    model = load(note, () if warm is None else warm.known.without, process)
    counts = Counts.of(model)
    check_positions(model, data.longest)
    check_tokens(model, data.highest_token)
    meter.enter(_PADDING)
    whole = Whole(model, process.device, run.dtype, process)
    run, padding, shallow = (
        warm.settled(run, model, tokenizer) if warm else _settle_trunk(run, whole, key, tokenizer, meter, note)
    )
    if shallow is None and prediction is not None and prediction.trunk is not None:  # the whole model needs more
        planned, prediction = plan(_whole(asked.config, planned, run.config), is_cut_named=is_named, started=started)
        run = _replanned(planned, asked, model)
    if run.engine is EngineKind.DEEPSPEED:
        note("starting DeepSpeed")
    engine = build_engine(run, model, process, objective_of(run.config, architecture, model))
    if padding is None:
        run, padding = settle_padding(run, engine, data.splits, tokenizer, note)
    settle_loss(engine, (shallow or data).train, padding, note)
    if prediction is not None and (shallow is None) != (prediction.trunk is None):
        prediction = None  # of the whole model, which no step runs
    release_memory(process.device)  # of the data's reading, the plan's tapes and the first batches
    meter.discard(_PADDING)
    note(first_decides(process, lambda: describe_saving(folder, counts.trainable)))
    return Job(
        run, process, folder, source, tokenizer, shallow or data, engine, num_steps, counts, meter, prediction, padding,
        None if shallow is None else load,
        standby=needed(found.standby, None if prediction is None or prediction.job is None else prediction.job.seconds),
        is_sharded=first_decides(process, lambda: shards_checkpoints(run, process, counts.trainable, note)),
    )  # fmt: skip


def _whole(asked: RunConfig, planned: RunConfig, settled: RunConfig) -> RunConfig:
    """Return the run whose frozen layers run in each step, with what the planner may choose left to it once more.

    Args:
        asked: before the plan.
        planned: with what the plan has chosen.
        settled: the same, or one sequence at a time where the padding asks for that.
    """
    batch = asked.batch if settled.batch == planned.batch else settled.batch
    return asked.model_copy(update={"batch": batch}).without_cache()


def _replanned(planned: RunConfig, asked: ResolvedRun, model: nn.Module) -> ResolvedRun:
    """Return the run as it is planned, with a model that is built already recomputing as that says."""
    set_recompute(model, planned.model.recompute)
    return resolve(planned, asked.devices)


def _count_steps(config: RunConfig, run: ResolvedRun, data: PreparedData, note: Callable[[str], None]) -> int:
    """Return the steps of a run; say which settings do nothing in them, and where most of them warm up."""
    training = config.training
    steps = partial(count_steps, data.train.num_texts, config.batch.global_batch_size)
    num_steps = 0 if config.method.fits_at_once else steps(training.epochs, training.max_steps)
    known = KnownOfRun(
        config,
        num_steps,
        epoch_steps=steps(1.0, None),
        validates=data.validation is not None,
        device_type=run.devices.device_type,
        world_size=run.devices.world_size,
        zero_stage=run.zero_stage,
    )
    for sentence in idle_settings(known):
        note(f"warning: {sentence}")
    num_warmup = config.schedule.num_warmup_steps(num_steps)
    if num_steps and num_warmup > _WARMUP_WARNING * num_steps:
        note(f"warning: {num_warmup} of {num_steps} steps warm up, more than a third; the peak rate is hardly used")
    return num_steps


def _settle_trunk(
    run: ResolvedRun, whole: Whole, key: Key, tokenizer: Any, meter: Meter, note: Callable[[str], None]
) -> tuple[ResolvedRun, Padding | None, PreparedData | None]:
    """Have the trunk computed once where that is wanted, and settle the padding for it; close the model above it."""
    if not wants_trunk(run, whole.model, key.num_passes):
        return run, None, None
    place(whole.model, whole.device)
    asked = run
    run, padding = settle_padding(run, whole, key.data.splits, tokenizer, note)
    meter.enter(Phase.TRUNK)
    computed = compute_once(run, whole, key.data, padding, note)
    meter.enter(_PADDING)
    if computed is None:
        return run, padding, None
    if whole.process.is_main:
        key.keep(computed, padding, is_alone=run.config.batch != asked.config.batch)
    return run, padding, computed.data


def _with_weights(config: RunConfig, data: PreparedData, note: Callable[[str], None]) -> RunConfig:
    """Return the run with the number that each class counts in training, and say them."""
    weights = class_weights(config.training.class_weights, data.train, data.labels)
    if weights is not None:
        shown = [f"{name} {weight:.3g}" for name, weight in weights.items()]
        note(f"class weights: {', '.join(shown[:8])}" + (f", and {len(shown) - 8} more" if len(shown) > 8 else ""))
    return config.model_copy(update={"training": config.training.model_copy(update={"class_weights": weights})})


def _silent(text: str) -> None:
    """Say nothing: not the first rank."""
