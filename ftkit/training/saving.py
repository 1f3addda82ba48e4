"""Keep what a run needs to go on, and take it up again: checkpoints, and the best weights so far."""

import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import distributed

from ftkit.errors import CheckpointError, DivergedError, DoesNotFitError, InterruptedRunError
from ftkit.machine.disk import written_patiently
from ftkit.machine.versions import versions
from ftkit.models.build import trainable_parameters
from ftkit.models.partitions import whole_shape
from ftkit.records.files import CHECKPOINT_BYTES, CHECKPOINTS, CONFIG, resume_flag
from ftkit.records.scores import Scores
from ftkit.training.checkpoints import checkpoint, same_run
from ftkit.training.checkpoints.by_ranks import Ranks
from ftkit.training.checkpoints.shards import shapes_of
from ftkit.training.checks.finite import check_tensors
from ftkit.training.recovery.attempts import UpdateFailedError
from ftkit.training.recovery.signals import StopNow, StopRequest, Work
from ftkit.training.setup import Job
from ftkit.training.state import Progress, best_step, best_steps

Note = Callable[[str], None]
Shapes = dict[str, tuple[int, ...]]
"""By the names of the weights."""
_MOST_COPIED = 64 * 2**20
"""Bytes of a checkpoint that are copied beside the originals, on a CPU, so that the steps go on."""


def judge(job: Job, progress: Progress, scores: Scores) -> bool:
    """Note a validation, and return whether its weights are among the best that are kept.

    Args:
        job: the run.
        progress: where it stands; remembers the figure that decides.
        scores: of the validation.
    """
    training = job.config.training
    value: float | None = getattr(scores, training.best_metric)  # None: a correlation with what is all the same
    progress.validations[progress.step] = value if value is not None and math.isfinite(value) else None
    progress.owes_validation = False
    return progress.step in best_steps(progress.validations, training.best_metric)[: training.keep_best]


def save(job: Job, progress: Progress, note: Note, *, is_best: bool = False, is_due: bool = True) -> None:
    """Copy what trains into host memory and write it from there in a thread; every rank calls this, the first writes.

    On a CPU a copy lies beside what is copied, in the memory that steps need; a large one is not made, and steps wait.

    Args:
        job: the run.
        progress: where it stands.
        note: told, by the thread, of a disk that is waited for.
        is_best: whether the weights are kept as those of a good validation.
        is_due: whether a checkpoint is written.

    Raises:
        Exception: what the write before this raised, which ends here if it goes on.
    """
    if job.is_sharded:
        _save_shards(job, progress, note, is_best=is_best, is_due=is_due)
        return
    is_large = job.counts.trainable * CHECKPOINT_BYTES > _MOST_COPIED
    waits = is_large and job.process.device.type == "cpu" and job.process.world_size == 1  # others would wait too
    weights = job.engine.trainable_state(copy=not waits)
    moments = job.engine.optimizer_state(copy=not waits) if is_due else {}
    check_tensors(weights, "weight", progress.step)
    check_tensors(moments, "moment", progress.step)
    if job.process.is_main:
        state, folder, keep = job.state(progress), job.folder / CHECKPOINTS, job.config.training.keep_checkpoints
        patience = job.config.output.disk_patience

        def write() -> None:
            _check_disk(job.folder)
            if is_best:  # before the checkpoint, which refers to it
                checkpoint.save_best(folder, state.step, weights, state.best_steps)
            if is_due:
                checkpoint.save_checkpoint(folder, state, weights, moments, keep)

        job.writer.start(lambda: written_patiently(write, folder, patience, note))
        if waits:
            job.writer.wait()


def _check_disk(folder: Path) -> None:
    """Refuse to write where a disk is gone: its empty mount point stays, and that lies on another disk."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _save_shards(job: Job, progress: Progress, note: Note, *, is_best: bool, is_due: bool) -> None:
    """Write the parts of every rank, now: a copy in host memory is what there is no room for."""
    state, folder, config = job.state(progress), job.folder / CHECKPOINTS, job.config

    def patiently(write: Callable[[], None]) -> None:
        def checked() -> None:
            _check_disk(job.folder)
            write()

        written_patiently(checked, folder, config.output.disk_patience, note)

    ranks = Ranks(
        job.process,
        patiently,
        lambda name, part: check_tensors({name: part}, "part", progress.step),
    )
    weights = job.engine.trainable_parts()
    if is_best:
        ranks.save_best(folder, state, weights)
    if is_due:
        ranks.save(folder, state, weights, job.engine.optimizer_parts(), config.training.keep_checkpoints)


def load_best(job: Job, progress: Progress) -> None:
    """Take the weights of the best validation into the engine, if the run has left them behind.

    Args:
        job: the run; every rank calls this.
        progress: where it stands.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    best = best_step(progress.validations, job.config.training.best_metric)
    if best is not None and best != progress.step:
        job.engine.load_trainable_state(checkpoint.load_best(job.folder / CHECKPOINTS, best))


def finish_writing(job: Job) -> None:
    """Wait until the first rank has written all that it copied; every rank calls this before it reads such files."""
    job.writer.wait()
    if job.process.world_size > 1:
        distributed.barrier()


def load_newest(job: Job, note: Note) -> checkpoint.TrainingState:
    """Load the newest checkpoint of a run that is whole into its engine.

    Args:
        job: the run; every rank calls this.
        note: told of a newer one that is damaged.

    Returns:
        Where it stood.

    Raises:
        CheckpointError: there is none, none is whole, or it is of another run.
    """
    folder = job.folder / CHECKPOINTS
    found = checkpoint.list_checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"no checkpoint in {folder}, since the run stopped before its first; start it again with --overwrite in "
            "the place of --resume"
        )
    path, (saved, weights, moments) = _newest_whole(found, _shapes(job), note)
    same_run.check_resumable(path, saved, job.state(Progress(0.0)).config, job.data.fingerprint)
    if changed := same_run.changed_versions(saved.versions, versions()):
        note(f"warning: {path} was written with {changed}; losses may differ from those of a run that never stopped")
    job.engine.load_trainable_state(weights)
    job.engine.load_optimizer_state(moments)
    return saved


def _newest_whole(found: Sequence[Path], shapes: Shapes, note: Note) -> tuple[Path, checkpoint.Loaded]:
    """Return the newest checkpoint that can be read as it was written, with weights of these shapes."""
    for path, older in zip(reversed(found), [*reversed(found[:-1]), None], strict=True):
        try:
            loaded = checkpoint.load_checkpoint(path)
            same_run.check_shapes(path, shapes_of(loaded[1]), shapes)
            return path, loaded
        except CheckpointError as error:
            if older is None:
                raise
            note(f"warning: {error}; going on from {older}")
    raise AssertionError("the last one is read or raises")


def go_back(job: Job, progress: Progress, error: UpdateFailedError, note: Note) -> None:
    """Return to the last checkpoint, after an update that left weights of which nobody knows how far they came.

    Args:
        job: the run.
        progress: where it stands; changed to where it stood.
        error: what the allocator said.
        note: told of a checkpoint that is damaged.

    Raises:
        DoesNotFitError: there is no checkpoint yet.
    """
    job.engine.discard_gradients()
    job.writer.wait()
    if not checkpoint.list_checkpoints(job.folder / CHECKPOINTS):
        raise DoesNotFitError(
            f"out of memory in the update of step {progress.step + 1}, before the first checkpoint: {error}; start "
            "again with smaller micro-batches, or with --set training.trial_step=always, which finds this before it "
            "starts"
        )
    saved = load_newest(job, note)
    progress.step, progress.owes_validation = saved.step, saved.owes_validation
    progress.validations = dict(saved.validations)


@contextmanager
def explained_divergence(job: Job) -> Iterator[None]:
    """Say of a run whose numbers are not finite what would help, and where it can go on.

    Args:
        job: the run.

    Raises:
        DivergedError: with the sentence of the one that came, the cures and the last good checkpoint.
    """
    try:
        yield
    except DivergedError as error:
        good = checkpoint.list_checkpoints(job.folder / CHECKPOINTS)
        kept = (
            f"The last good checkpoint is {good[-1]}: {resume_flag(job.folder)} goes on from there"
            if good
            else "No checkpoint had been written: start anew with --overwrite"
        )
        raise DivergedError(f"{error}; {_cure(job, error)}. {kept}") from None


def _cure(job: Job, error: DivergedError) -> str:
    """Return what would help against numbers that are not finite: other weights where no step had changed them."""
    is_full = job.run.precision == "fp32"
    if error.is_before_updates:
        weights = f"the weights of {job.config.model.name} or their activations are not finite as they came"
        return f"{weights}, so take other weights" + ("" if is_full else ", or give --precision fp32")
    rate = f"give a --learning-rate below {job.config.learning_rate:g}"
    return f"{rate}, or more --warmup-steps" if is_full else f"{rate}, more --warmup-steps, or --precision fp32"


@contextmanager
def told_when_stopped(job: Job, progress: Progress, stop: StopRequest) -> Iterator[None]:
    """End a run that was asked to stop with the code that means that it can go on.

    Args:
        job: the run.
        progress: where it stands.
        stop: who asked.

    Raises:
        InterruptedRunError: the run was asked to stop.
    """
    with stop.during(Work.CHANGING):
        try:
            yield
        except StopNow:
            raise InterruptedRunError(
                f"stopped by {stop.name or 'a request to another rank'} after step {progress.step} of {job.num_steps}; "
                f"nothing is lost: go on with {resume_flag(job.folder)}"
            ) from None


@contextmanager
def saved_when_stopped(job: Job, progress: Progress, note: Note) -> Iterator[None]:
    """Write a checkpoint where the run was asked to stop; after the last step there is one already.

    Args:
        job: the run; every rank is here.
        progress: where it stands.
        note: as for `save`.
    """
    try:
        yield
    except StopNow:
        save(job, progress, note)
        job.writer.wait()
        raise


def _shapes(job: Job) -> Shapes:
    """Return the shapes of what trains, whole where ZeRO-3 has partitioned it."""
    trainable = trainable_parameters(job.engine.model)
    return {name: tuple(whole_shape(one)) for name, one in trainable.items()}
