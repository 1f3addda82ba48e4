"""Go on with a run from its newest checkpoint, to the end that it had or to a later one."""

from collections.abc import Callable

from ftkit.data.batching import global_batches
from ftkit.engine.optim import learning_rate_at
from ftkit.errors import CheckpointError
from ftkit.records.files import read_record
from ftkit.training.checkpoints import checkpoint
from ftkit.training.saving import load_newest
from ftkit.training.setup import Job
from ftkit.training.state import Progress, num_without_improvement
from ftkit.units import counted


def take_up(job: Job, started: float, note: Callable[[str], None]) -> Progress:
    """Load the newest checkpoint of a run into its engine.

    Args:
        job: the run, set up as it is to go on.
        started: when this process began, by `time.perf_counter`.
        note: told where it goes on, if its end is another one than it was.

    Returns:
        Where the run stands.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, it is of another run, or no step is left to take.
    """
    saved = load_newest(job, note)
    _check_end(job, saved)
    if saved.num_steps != job.num_steps:
        note(_new_end(job, saved))
    num_tokens, num_samples = _taken(job, saved.step) if saved.train_seconds else (0, 0)
    return Progress(
        started,
        earlier_seconds=saved.total_seconds,
        step=saved.step,
        validations=dict(saved.validations),
        train_seconds=saved.train_seconds,
        num_tokens=num_tokens,
        num_samples=num_samples,
        owes_validation=saved.owes_validation,
    )


def _taken(job: Job, step: int) -> tuple[int, int]:
    """Return the tokens and the sequences of the first steps, which follow from the order of the data."""
    train, batch, seed = job.data.train, job.config.batch, job.config.training.seed
    batches = [one.indices for one in global_batches(len(train), batch.global_batch_size, seed, step)]
    return sum(int(train.lengths[rows].sum()) for rows in batches), sum(map(len, batches))


def _check_end(job: Job, saved: checkpoint.TrainingState) -> None:
    """Refuse an end that the run has passed; a run that was stopped between its last step and its result goes on."""
    record = read_record(job.folder)
    is_behind = job.num_steps < saved.step or (job.num_steps == saved.step and record.result is not None)
    training = job.config.training
    if is_behind:
        ends = " and ".join(
            f"training.{key}={value:g}"
            for key in ("epochs", "max_steps")
            if (value := getattr(training, key)) is not None
        )
        raise CheckpointError(
            f"the run in {job.folder} has taken {counted(saved.step, 'step')}, and {ends} ends it at step "
            f"{job.num_steps}; to train it for longer, give more --epochs or --max-steps"
        )
    patience = training.early_stopping_patience
    waited = num_without_improvement(saved.validations, training.best_metric)
    if record.result is not None and patience is not None and waited >= patience:
        raise CheckpointError(
            f"the run in {job.folder} stopped early: {counted(waited, 'validation')} brought no improvement, and "
            f"training.early_stopping_patience is {patience}; to train it for longer, raise that too"
        )


def _new_end(job: Job, saved: checkpoint.TrainingState) -> str:
    config, step = job.config, saved.step + 1
    text = f"going on from step {saved.step} to step {job.num_steps}; the run was to end at step {saved.num_steps}"
    if config.schedule.name == "constant" or step > job.num_steps:
        return text
    rate = learning_rate_at(step, job.num_steps, config.schedule, config.learning_rate)
    return (
        f"{text}. The {config.schedule.name} schedule now spans all {job.num_steps} steps: step {step} has {rate:.2e}"
    )
