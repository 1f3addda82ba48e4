"""Keep what a run needs to go on, and take it up again: checkpoints, and the best weights so far."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import distributed

from ftkit.errors import CheckpointError, DivergedError, DoesNotFitError
from ftkit.records.files import CHECKPOINTS
from ftkit.records.schema import Scores
from ftkit.report.metrics import METRICS
from ftkit.training import checkpoint
from ftkit.training.finite import check_tensors
from ftkit.training.recovery.attempts import UpdateFailedError
from ftkit.training.setup import Job
from ftkit.training.state import Progress


def judge(job: Job, progress: Progress, scores: Scores) -> None:
    """Keep the weights if this validation is the best so far.

    Args:
        job: the run; every rank calls this.
        progress: where it stands; remembers the best.
        scores: of the validation.
    """
    metric = job.config.training.best_metric
    value: float | None = getattr(scores, metric)  # None: a correlation with what is all the same
    best = progress.best_value
    if value is None or not math.isfinite(value) or (best is not None and not METRICS[metric].is_better(value, best)):
        progress.num_without_improvement += 1
        return
    progress.best_value, progress.best_step, progress.num_without_improvement = value, progress.step, 0
    weights = job.engine.trainable_state()
    check_tensors(weights, "weight", progress.step)
    if job.process.is_main:
        checkpoint.save_best(job.folder / CHECKPOINTS, weights)
    _meet(job)


def save(job: Job, progress: Progress) -> None:
    """Write a checkpoint; every rank calls this, the first one writes.

    Args:
        job: the run.
        progress: where it stands.
    """
    weights, moments = job.engine.trainable_state(), job.engine.optimizer_state()
    check_tensors(weights, "weight", progress.step)
    check_tensors(moments, "moment", progress.step)
    keep = job.config.training.keep_checkpoints
    if job.process.is_main:
        checkpoint.save_checkpoint(job.folder / CHECKPOINTS, job.state(progress), weights, moments, keep)
    _meet(job)


def load_newest(job: Job, note: Callable[[str], None]) -> checkpoint.TrainingState:
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
        raise CheckpointError(f"no checkpoint in {folder}; start without --resume")
    path, (saved, weights, moments) = _newest_whole(found, note)
    config = checkpoint.resumable_part(job.config.model_dump(mode="json"))
    checkpoint.check_resumable(path, saved, config, job.data.fingerprint)
    job.engine.load_trainable_state(weights)
    job.engine.load_optimizer_state(moments)
    return saved


def _newest_whole(found: Sequence[Path], note: Callable[[str], None]) -> tuple[Path, checkpoint.Loaded]:
    """Return the newest checkpoint that can be read as it was written."""
    for path, older in zip(reversed(found), [*reversed(found[:-1]), None], strict=True):
        try:
            return path, checkpoint.load_checkpoint(path)
        except CheckpointError as error:
            if older is None:
                raise
            note(f"warning: {error}; going on from {older}")
    raise AssertionError("the last one is read or raises")


def go_back(job: Job, progress: Progress, error: UpdateFailedError, note: Callable[[str], None]) -> None:
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
    if not checkpoint.list_checkpoints(job.folder / CHECKPOINTS):
        raise DoesNotFitError(
            f"out of memory in the update of step {progress.step + 1}, before the first checkpoint: {error}; start "
            "again with smaller micro-batches, or with training.trial_step=always, which finds this before it starts"
        )
    saved = load_newest(job, note)
    progress.step, progress.owes_validation = saved.step, saved.owes_validation
    progress.best_value, progress.best_step = saved.best_value, saved.best_step
    progress.num_without_improvement = saved.num_without_improvement


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
            f"The last good checkpoint is {good[-1]}: --resume {job.folder} goes on from there"
            if good
            else "No checkpoint had been written: start anew with --overwrite"
        )
        raise DivergedError(
            f"{error}; lower optimizer.learning_rate={job.config.learning_rate:g}, warm up longer, or compute in bf16 "
            f"or fp32. {kept}"
        ) from None


def _meet(job: Job) -> None:
    if job.process.world_size > 1:
        distributed.barrier()
