"""Training: from a configuration to a result folder."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed

from ftkit.config.files import dump_config
from ftkit.config.tree import RunConfig
from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import GlobalBatch, collate, cut, global_batches
from ftkit.engine.first_line import first_line
from ftkit.engine.optim import learning_rate_at
from ftkit.errors import CheckpointError, DivergedError, DoesNotFitError
from ftkit.machine.disk import explained_writing
from ftkit.machine.memory import Snapshot
from ftkit.machine.process import ProcessContext, joined
from ftkit.machine.versions import device_name
from ftkit.models.build import set_training
from ftkit.models.methods import method_of
from ftkit.observe.meter import gather, memory_figures, planned_utilization
from ftkit.records.files import CHECKPOINTS, CONFIG, RECORD, RecordWriter, read_record
from ftkit.records.schema import EvaluationLine, Measurement, Record, ResultLine, RunRecord, Scores, StepLine
from ftkit.step import step
from ftkit.step.observer import Observers
from ftkit.step.step import StepResult
from ftkit.training import checkpoint
from ftkit.training.evaluate import evaluate
from ftkit.training.folder import save_model, write_card, written_bytes
from ftkit.training.reporters import Reporter
from ftkit.training.setup import Job, prepare
from ftkit.training.state import Progress, Window
from ftkit.training.timeline import Watch


def train_run(config: RunConfig, process: ProcessContext, reporter: Reporter, *, resume: bool = False) -> RunRecord:
    """Train as a configuration says, score, and leave a result folder.

    Args:
        config: the run.
        process: the place of this process; every process of the job calls this.
        reporter: told what happens, on the first rank only.
        resume: go on from the last checkpoint in `config.output.folder`.

    Returns:
        Everything that was measured.

    Raises:
        FtkitError: naming what was given, what was wanted and what to try.
    """
    started = time.perf_counter()
    with _explained_memory(config), joined(process):
        snapshot = Snapshot(process.device) if config.output.memory_snapshot else None
        job = prepare(config, process, reporter, resume=resume)
        with explained_writing(job.folder, f"then go on with --resume {job.folder}"):
            log = RecordWriter(job.folder / RECORD) if process.is_main else None
            record = _Recorder(log, reporter if process.is_main else None)
            return _train(job, record, started, snapshot, resume=resume)


class _Recorder:
    """Writes lines, tells the reporter, and remembers them; on the first rank."""

    def __init__(self, log: RecordWriter | None, reporter: Reporter | None) -> None:
        self._log, self.reporter = log, reporter

    def write(self, line: Record) -> None:
        if self._log is not None:
            self._log.write(line)


def _train(job: Job, record: _Recorder, started: float, snapshot: Snapshot | None, *, resume: bool) -> RunRecord:
    """Run all steps, restore the best weights, score the test split, save."""
    progress = _resume(job) if resume else Progress()
    run = first_line(job.folder.name, job.run, device_name(job.engine.device), job.num_steps, job.prediction)
    if job.process.is_main:
        (job.folder / CONFIG).write_text(dump_config(job.config), encoding="utf-8")
        record.write(run)
    if record.reporter:
        record.reporter.start(run, job.folder)
    with closing(_watch(job, progress, record, snapshot)) as watch:
        status = _run_steps(job, progress, record, watch)
    if progress.best_step not in (None, progress.step):
        job.engine.load_trainable_state(checkpoint.load_best(job.folder / CHECKPOINTS))
    if job.data.test is not None:
        _score(job, progress, record, "test", job.data.test)
    save_model(job.engine, method_of(job.config), job.tokenizer, job.folder)
    measurement = _measure(job, progress)
    result = ResultLine(
        status=status,
        num_steps=progress.step,
        best_step=progress.best_step,
        train_seconds=progress.train_seconds,
        total_seconds=time.perf_counter() - started,
        measurement=measurement,
    )
    record.write(result)
    if not job.process.is_main:
        return RunRecord(run=run, result=result)
    whole = read_record(job.folder)
    write_card(job.folder, job.config, whole, job.data.label_names, job.tokenizer.pad_token_id)
    if record.reporter:
        record.reporter.finish(whole, job.folder)
    return whole


def _watch(job: Job, progress: Progress, record: _Recorder, snapshot: Snapshot | None) -> Watch:
    at = min(progress.step + 2, job.num_steps)
    wants_timeline = job.config.output.memory_timeline and job.process.is_main
    return Watch(job.engine, at, record.write if wants_timeline else None, snapshot, job.folder)


def _run_steps(job: Job, progress: Progress, record: _Recorder, watch: Watch) -> Any:
    """Take optimizer steps until the end or an early stop; return how it ended."""
    training, engine = job.config.training, job.engine
    set_training(engine.model, True)
    batches = global_batches(
        len(job.data.train), job.config.batch.global_batch_size, training.seed, job.num_steps, progress.step + 1
    )
    window, patience = Window(), training.early_stopping_patience
    for batch in batches:
        if patience is not None and progress.num_without_improvement >= patience:
            return "stopped early"
        result = _take_step(job, batch, watch)
        progress.step, progress.epoch = batch.step, batch.epoch
        is_end = batch.step == job.num_steps
        window.add(job.data.train, batch)
        if record.reporter:
            record.reporter.advance(batch.step)
        if is_end or batch.step % training.log_every == 0:
            _log_step(job, progress, record, result, window)
        if is_end or _is_due(batch, training.eval_every):
            if window.num_steps:
                window.close(progress)
            if job.data.validation is not None:
                line = _score(job, progress, record, "validation", job.data.validation)
                _judge(job, progress, line)
            window = Window()
        if is_end or _is_due(batch, training.checkpoint_every):
            if window.num_steps:
                window.close(progress)
            _save(job, progress)
            window = Window()
    return "completed"


def _take_step(job: Job, batch: GlobalBatch, watch: Watch) -> StepResult:
    config, train = job.config, job.data.train
    shares = cut(train.lengths[batch.indices], config.batch, job.process.world_size)
    pad = job.tokenizer.pad_token_id
    micro_batches = [collate(train, batch.indices[share], pad, job.engine.device) for share in shares[job.process.rank]]
    num_targets = job.target_weights[batch.indices].sum().item()
    rate = learning_rate_at(batch.step, job.num_steps, config.schedule, config.learning_rate)
    # Dropout's draws depend on step and rank alone, so a resumed run draws what the first would have drawn.
    torch.manual_seed(
        int(np.random.SeedSequence((config.training.seed, batch.step, job.process.rank)).generate_state(1)[0])
    )
    with watch.over(batch.step, micro_batches) as recorder:
        observers = Observers((recorder, job.meter))
        return step.train_step(job.engine, micro_batches, max(num_targets, 1), rate, observers)


def _log_step(job: Job, progress: Progress, record: _Recorder, result: StepResult, window: Window) -> None:
    loss, norm = float(result.loss), float(result.grad_norm)  # reading waits for the device, so the clock is right
    step_seconds, tokens_per_second = window.close(progress)
    config = job.config
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss at step {progress.step} is {loss}; lower optimizer.learning_rate={config.learning_rate:g}, "
            "warm up longer, or compute in bf16 or fp32. The last checkpoint is kept"
        )
    line = StepLine(
        step=progress.step,
        epoch=progress.epoch,
        loss=loss,
        learning_rate=learning_rate_at(progress.step, job.num_steps, config.schedule, config.learning_rate),
        grad_norm=norm if math.isfinite(norm) else None,  # fp16: the step was skipped and the loss scale halved
        step_seconds=step_seconds,
        tokens_per_second=tokens_per_second,
    )
    record.write(line)
    if record.reporter:
        reached = job.meter.overall()
        active, process = reached.active_bytes, reached.process_bytes
        record.reporter.step(line, active if active is not None else process)


def _score(job: Job, progress: Progress, record: _Recorder, name: str, split: TokenSplit) -> EvaluationLine:
    scores = evaluate(job.engine, split, job.config.batch, job.tokenizer.pad_token_id, job.num_labels, job.meter)
    step = progress.step if name == "validation" else progress.best_step or progress.step
    line = EvaluationLine(step=step, epoch=progress.epoch, split=name, **scores.model_dump())
    record.write(line)
    if record.reporter:
        record.reporter.evaluation(line)
    return line


def _judge(job: Job, progress: Progress, scores: Scores) -> None:
    """Keep the weights if this validation is the best so far."""
    metric = job.config.training.best_metric
    found = getattr(scores, metric)
    value = float(scores.loss if found is None else found)
    is_loss = metric == "loss" or found is None
    best = progress.best_value
    if best is not None and not (value < best if is_loss else value > best):
        progress.num_without_improvement += 1
        return
    progress.best_value, progress.best_step, progress.num_without_improvement = value, progress.step, 0
    weights = job.engine.trainable_state()
    if job.process.is_main:
        checkpoint.save_best(job.folder / CHECKPOINTS, weights)
    _meet(job.process)


def _save(job: Job, progress: Progress) -> None:
    weights, moments = job.engine.trainable_state(), job.engine.optimizer_state()
    if job.process.is_main:
        checkpoint.save_checkpoint(job.folder / CHECKPOINTS, job.state(progress), weights, moments)
    _meet(job.process)


def _resume(job: Job) -> Progress:
    """Take up the newest checkpoint that is whole."""
    folder = job.folder / CHECKPOINTS
    found = checkpoint.list_checkpoints(folder)
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}; start without --resume")
    saved, weights, moments = checkpoint.load_checkpoint(found[-1])
    checkpoint.check_resumable(found[-1], saved, job.state(Progress()).config, job.data.fingerprint)
    job.engine.load_trainable_state(weights)
    job.engine.load_optimizer_state(moments)
    return Progress(
        step=saved.step,
        best_value=saved.best_value,
        best_step=saved.best_step,
        num_without_improvement=saved.num_without_improvement,
        train_seconds=saved.train_seconds,
    )


def _measure(job: Job, progress: Progress) -> Measurement:
    device, speed = job.engine.device, progress.speed()
    name, precision = device_name(device), job.run.precision
    return Measurement(
        device=name,
        **memory_figures(gather(job.meter, job.process), device),
        disk_bytes=written_bytes(job.folder),
        num_parameters=job.counts.total,
        num_trainable_parameters=job.counts.trainable,
        model_flops_utilization=planned_utilization(job.prediction, speed.get("tokens_per_second"), name, precision),
        **speed,
    )


def _is_due(batch: GlobalBatch, every: int | None) -> bool:
    return batch.ends_epoch if every is None else batch.step % every == 0


def _meet(process: ProcessContext) -> None:
    if process.world_size > 1:
        distributed.barrier()


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an accelerator's allocator, torch's on a CPU, or Python itself ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def _explained_memory(config: RunConfig) -> Iterator[None]:
    """Turn an out-of-memory into the cures, cheapest first."""
    try:
        with warnings.catch_warnings():
            yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        said, limit = " ".join(str(error).split())[:200], config.batch.token_limit
        cut_cure = f"batch.micro_batch_tokens below {limit}" if limit else "batch.micro_batch_size lower"
        raise DoesNotFitError(
            f"out of memory: {said}. Try {cut_cure} (the mathematics stays the same), then "
            "model.gradient_checkpointing=1, then method qlora, then a higher engine.zero_stage or offload"
        ) from error
