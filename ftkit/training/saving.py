"""Keep what a run needs to go on, and take it up again: checkpoints, and the best weights so far."""

from torch import distributed

from ftkit.errors import CheckpointError, DoesNotFitError
from ftkit.records.files import CHECKPOINTS
from ftkit.records.schema import Scores
from ftkit.report.metrics import METRICS
from ftkit.training import checkpoint
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
    if value is None or (best is not None and not METRICS[metric].is_better(value, best)):
        progress.num_without_improvement += 1
        return
    progress.best_value, progress.best_step, progress.num_without_improvement = value, progress.step, 0
    weights = job.engine.trainable_state()
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
    if job.process.is_main:
        checkpoint.save_checkpoint(job.folder / CHECKPOINTS, job.state(progress), weights, moments)
    _meet(job)


def load_newest(job: Job) -> Progress:
    """Take up the newest checkpoint that is whole.

    Args:
        job: the run; every rank calls this.

    Returns:
        Where it stood.

    Raises:
        CheckpointError: there is none, or it is of another run.
    """
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
        owes_validation=saved.owes_validation,
    )


def go_back(job: Job, progress: Progress, error: UpdateFailedError) -> None:
    """Return to the last checkpoint, after an update that left weights of which nobody knows how far they came.

    Args:
        job: the run.
        progress: where it stands; changed to where it stood.
        error: what the allocator said.

    Raises:
        DoesNotFitError: there is no checkpoint yet.
    """
    job.engine.discard_gradients()
    if not checkpoint.list_checkpoints(job.folder / CHECKPOINTS):
        raise DoesNotFitError(
            f"out of memory in the update of step {progress.step + 1}, before the first checkpoint: {error}; start "
            "again with smaller micro-batches, or with training.trial_step=always, which finds this before it starts"
        )
    saved = load_newest(job)
    progress.step, progress.owes_validation = saved.step, saved.owes_validation
    progress.best_value, progress.best_step = saved.best_value, saved.best_step
    progress.num_without_improvement = saved.num_without_improvement


def _meet(job: Job) -> None:
    if job.process.world_size > 1:
        distributed.barrier()
