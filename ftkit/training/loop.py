"""Training: from a configuration to a result folder."""

import math
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ftkit.config.files import dump_config, load_config
from ftkit.config.tree import RunConfig
from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import GlobalBatch, global_batches
from ftkit.engine.first_line import first_line
from ftkit.engine.optim import learning_rate_at
from ftkit.machine.disk import explained_writing, replace_text, written_patiently
from ftkit.machine.memory import Snapshot
from ftkit.machine.process import ProcessContext, first_decides, joined
from ftkit.machine.versions import device_name
from ftkit.models.activations.recompute import set_recompute
from ftkit.models.build import set_training
from ftkit.models.methods import method_of
from ftkit.observe.meter import gather, memory_figures, planned_utilization
from ftkit.records.figures import Record
from ftkit.records.files import CONFIG, MODEL, RECORD, RecordWriter, read_record, resume_flag
from ftkit.records.origin import write_origin
from ftkit.records.schema import (
    EvaluationLine,
    Measurement,
    RecoveryLine,
    ResultLine,
    RunLine,
    RunRecord,
    StepLine,
)
from ftkit.step.step import StepResult
from ftkit.training.answers import keep_answers
from ftkit.training.checks.finite import FiniteSteps, check_loss
from ftkit.training.checks.first_steps import FirstSteps
from ftkit.training.evaluate import Logits, evaluate
from ftkit.training.logistic import fit_head
from ftkit.training.recovery.attempts import Attempts, UpdateFailedError, explained_memory, had
from ftkit.training.recovery.beginning import Beginning
from ftkit.training.recovery.heartbeat import Heartbeat, named_silence
from ftkit.training.recovery.limits import Limits, keep_limits, kept_limits
from ftkit.training.recovery.signals import StopNow, StopRequest, Work
from ftkit.training.reopening.compare import remember, reopen
from ftkit.training.reporters import Reporter, Reporters
from ftkit.training.results.card import write_cards
from ftkit.training.results.folder import written_bytes
from ftkit.training.results.metrics import labels_line, remarks
from ftkit.training.results.model import round_as_stored, save_model
from ftkit.training.resume import take_up
from ftkit.training.saving import (
    explained_divergence,
    finish_writing,
    go_back,
    judge,
    load_best,
    save,
    saved_when_stopped,
    told_when_stopped,
)
from ftkit.training.setup import Job, prepare
from ftkit.training.state import Progress, Window, best_step, num_without_improvement
from ftkit.training.steps import shortest_micro_batch, take_step, try_worst, wants_trial
from ftkit.training.time_left import seconds_left
from ftkit.training.timeline import Watch

Status = Literal["completed", "stopped early"]


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
    stop = StopRequest(is_alone=process.world_size == 1, launchers=process.launchers)
    with stop.listening(), explained_memory(config), joined(process, config.engine.peer_timeout):
        snapshot = Snapshot(process.device) if config.output.memory_snapshot else None
        job = prepare(config, process, reporter, resume=resume, started=started)
        cure = f"then go on with {resume_flag(job.folder)}"
        with explained_writing(job.folder, cure), named_silence(job.folder, process):
            if not process.is_main:
                return _train(job, _Recorder(Reporters()), started, snapshot, stop, resume=resume)
            with RecordWriter(job.folder / RECORD) as log:
                recorder = _Recorder(reporter, log, config.output.disk_patience, process.device.type)
                return _train(job, recorder, started, snapshot, stop, resume=resume)


@dataclass(frozen=True)
class _Recorder:
    """The audience of a run: its record and a reporter on the first rank, nobody on the others."""

    reporter: Reporter
    log: RecordWriter | None = None
    disk_patience: float = 0.0
    device_type: str = "cpu"

    def write(self, line: Record) -> None:
        if self.log is not None:
            written_patiently(partial(self.log.write, line), Path(RECORD), self.disk_patience, self.reporter.note)

    def tell(self, line: RecoveryLine) -> None:
        """Write that a step was taken again, and say so."""
        self.write(line)
        memory = had(line.available_bytes, self.device_type)
        self.reporter.note(f"warning: {line.reason}{memory}; going on with {line.after}, where it was {line.before}")


def _train(
    job: Job, record: _Recorder, started: float, snapshot: Snapshot | None, stop: StopRequest, *, resume: bool
) -> RunRecord:
    """Run all steps, restore the best weights, score the test split, save."""
    progress = take_up(job, started, record.reporter.note) if resume else Progress(started)
    asked = Limits.of(job.config)
    limits = kept_limits(job.folder, asked)
    if limits != asked:
        record.reporter.note(f"going on with {limits}, since memory ran out earlier with {asked}")
    if limits.recompute != asked.recompute:
        set_recompute(job.engine.model, limits.recompute)
    keep = partial(keep_limits, job.folder, job.config)
    groups, shortest = job.config.engine.stream_micro_batches != 1, partial(shortest_micro_batch, job)
    attempts = Attempts(job.engine, limits, job.longest, shortest, stop, record.tell, keep, groups)
    run = first_line(job.folder.name, job.run, device_name(job.engine.device), job.num_steps, job.prediction)
    used = limits.applied(job.config)
    told: dict[str, Any] = {"labels": labels_line(job.data.labels), "example": job.data.report.example}
    told |= {"config": used.model_dump(mode="json"), "resumed_step": progress.step if resume else None}
    run = run.model_copy(update=told)
    if job.process.is_main:
        replace_text(job.folder / CONFIG, dump_config(used))
    record.write(run)
    record.reporter.start(run, job.folder)
    with explained_divergence(job), job.writer.finished(), told_when_stopped(job, progress, stop):
        with (
            closing(_watch(job, progress, record, snapshot)) as watch,
            saved_when_stopped(job, progress, record.reporter.note),
        ):
            status = _run_steps(job, progress, record, watch, attempts)
        return _finish(job, progress, record, run, status, attempts)


def _finish(
    job: Job, progress: Progress, record: _Recorder, run: RunLine, status: Status, attempts: Attempts
) -> RunRecord:
    """Restore the best weights, save, score the test split."""
    finish_writing(job)
    load_best(job, progress)
    round_as_stored(job.engine, method_of(job.config), job.source)
    saved = save_model(job.engine, method_of(job.config), job.tokenizer, job.source, job.folder, job.load_whole)
    expected = remember(job, saved) if job.config.output.reopen else None
    if job.data.test is not None:
        with attempts.stop.during(Work.READING):
            keep_answers(job, *_score(job, progress, record, "test", job.data.test))
    measurement = _measure(job, progress)
    difference = None
    if expected is not None:
        with attempts.stop.during(Work.READING):
            difference = first_decides(job.process, partial(reopen, job, expected, record.reporter.note))
    result = ResultLine(
        status=status,
        num_steps=progress.step,
        limits=None if attempts.limits == Limits.of(job.config) else str(attempts.limits),
        best_step=best_step(progress.validations, job.config.training.best_metric),
        **progress.times(),
        reopened_difference=difference,
        measurement=measurement,
    )
    record.write(result)
    if not job.process.is_main:
        return RunRecord(run=run, result=result)
    write_origin(job.folder / MODEL, load_config(job.folder / CONFIG), run.labels)
    whole = read_record(job.folder)
    write_cards(job.folder, job.config, whole, job.data, job.tokenizer, job.engine.model)
    record.reporter.finish(whole, job.folder)
    return whole


def _watch(job: Job, progress: Progress, record: _Recorder, snapshot: Snapshot | None) -> Watch:
    at = min(progress.step + 2, job.num_steps)
    wants_timeline = job.config.output.memory_timeline and job.process.is_main
    return Watch(job.engine, at, record.write if wants_timeline else None, snapshot, job.folder)


def _run_steps(job: Job, progress: Progress, record: _Recorder, watch: Watch, attempts: Attempts) -> Status:
    """Take optimizer steps until the end or an early stop; return how it ended."""
    if method_of(job.config).fits_at_once:
        progress.begin_steps()
        progress.train_seconds = fit_head(job, record.reporter.note)
        _validate(job, progress, record, attempts.stop)
        return "completed"
    set_training(job.engine.model, True)
    if wants_trial(job):
        try_worst(job, attempts)
    if progress.owes_validation and _validate(job, progress, record, attempts.stop):
        save(job, progress, record.reporter.note, is_best=True, is_due=False)
    beginning = Beginning(job, progress)
    progress.begin_steps()
    while True:
        try:
            return _steps_from(job, progress, record, watch, attempts)
        except UpdateFailedError as error:
            failed = progress.step + 1
            if not beginning.again(progress):
                go_back(job, progress, error, record.reporter.note)
            attempts.shrink(failed, f"{error} in the update; going back to step {progress.step}")


def _steps_from(job: Job, progress: Progress, record: _Recorder, watch: Watch, attempts: Attempts) -> Status:
    finite = FiniteSteps(may_skip=job.run.precision == "fp16")
    try:
        return _take_steps(job, progress, record, watch, attempts, finite)
    except StopNow:
        finite.check()  # the weights are about to be saved
        raise


def _take_steps(
    job: Job, progress: Progress, record: _Recorder, watch: Watch, attempts: Attempts, finite: FiniteSteps
) -> Status:
    training = job.config.training
    batches = global_batches(
        job.data.train.num_texts, job.config.batch.global_batch_size, training.seed, job.num_steps, progress.step + 1
    )
    first_steps = FirstSteps(job.engine, progress.step, may_skip=job.run.precision == "fp16")
    window, patience, heart = Window(), training.early_stopping_patience, Heartbeat(job.folder, job.process)
    for batch in batches:
        job.writer.check()
        if patience is not None and num_without_improvement(progress.validations, training.best_metric) >= patience:
            return "stopped early"
        heart.beat(batch.step)
        result = take_step(job, batch, watch, attempts)
        finite.add(batch.step, result)
        first_steps.look(batch.step, record.reporter.note)
        progress.step, progress.epoch = batch.step, batch.epoch
        is_end = batch.step == job.num_steps
        progress.owes_validation = is_end or _is_due(batch, training.eval_every)
        window.add(job.data.train, batch)
        record.reporter.advance(batch.step)
        if is_end or batch.step % training.log_every == 0:
            finite.check()
            _log_step(job, progress, record, result, window)
        if attempts.stops:
            raise StopNow
        is_due = is_end or _is_due(batch, training.checkpoint_every)
        if progress.owes_validation or is_due:
            finite.check()
            window.pause(progress)
            is_best = progress.owes_validation and _validate(job, progress, record, attempts.stop)
            if is_best or is_due:
                save(job, progress, record.reporter.note, is_best=is_best, is_due=is_due)
            window = Window()
    return "completed"


def _validate(job: Job, progress: Progress, record: _Recorder, stop: StopRequest) -> bool:
    """Score the validation split, if there is one; return whether the weights are to be kept."""
    if job.data.validation is None:
        progress.owes_validation = False
        return False
    with stop.during(Work.READING):
        line, logits = _score(job, progress, record, "validation", job.data.validation)
    is_kept = judge(job, progress, line)
    if best_step(progress.validations, job.config.training.best_metric) in (None, progress.step):
        keep_answers(job, line, logits)  # of the model that is saved
    return is_kept


def _log_step(job: Job, progress: Progress, record: _Recorder, result: StepResult, window: Window) -> None:
    loss, norm = float(result.loss), float(result.grad_norm)  # reading waits for the device, so the clock is right
    step_seconds, tokens_per_second = window.close(progress)
    line = StepLine(
        step=progress.step,
        epoch=progress.epoch,
        loss=loss,
        learning_rate=learning_rate_at(progress.step, job.num_steps, job.config.schedule, job.config.learning_rate),
        grad_norm=norm if math.isfinite(norm) else None,  # fp16: the step was skipped and the loss scale halved
        step_seconds=step_seconds,
        tokens_per_second=tokens_per_second,
        seconds_left=seconds_left(progress, job.num_steps, job.prediction),
    )
    record.write(line)
    reached = job.meter.overall()
    record.reporter.step(line, reached.process_bytes if reached.active_bytes is None else reached.active_bytes)


def _score(
    job: Job, progress: Progress, record: _Recorder, name: str, split: TokenSplit
) -> tuple[EvaluationLine, Logits]:
    scores, logits = evaluate(job.engine, split, job.config.batch, job.padding, job.data.labels, job.meter)
    best = best_step(progress.validations, job.config.training.best_metric)
    step = progress.step if name == "validation" else best or progress.step
    check_loss(scores.loss, name, step)
    line = EvaluationLine(step=step, epoch=progress.epoch, split=name, **scores.model_dump())
    record.write(line)
    record.reporter.evaluation(line)
    for remark in remarks(name, line, job.data.labels):
        record.reporter.note(remark)
    return line, logits


def _measure(job: Job, progress: Progress) -> Measurement:
    device, speed = job.engine.device, progress.speed()
    name, precision = device_name(device), job.run.precision
    planned = (job.prediction, speed.get("tokens_per_second"), name, precision)
    return Measurement(
        device=name,
        **memory_figures(gather(job.meter, job.process), device),
        disk_bytes=written_bytes(job.folder),
        num_parameters=job.counts.total,
        num_trainable_parameters=job.counts.trainable,
        model_flops_utilization=None if job.load_whole else planned_utilization(*planned),
        **speed,
    )


def _is_due(batch: GlobalBatch, every: int | None) -> bool:
    return batch.ends_epoch if every is None else batch.step % every == 0
