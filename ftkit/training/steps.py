"""Take one step of a run: cut its global batch, watch it, and take it again where memory runs out."""

import numpy as np
import torch

from ftkit.data.batching import GlobalBatch, Indices, MicroBatch, collate, cut
from ftkit.engine.optim import learning_rate_at
from ftkit.step import step
from ftkit.step.observer import Observers
from ftkit.step.step import StepResult
from ftkit.training.recovery.attempts import Attempts, trial
from ftkit.training.recovery.limits import Limits
from ftkit.training.setup import Job
from ftkit.training.timeline import Watch

_NEAR = 0.8
"""Of the memory that there is: a plan above it is near enough that the worst step is tried first."""
_TRIAL = "trial"
"""The meter's phase of the step that is undone; it is forgotten."""


def take_step(job: Job, batch: GlobalBatch, watch: Watch, attempts: Attempts) -> StepResult:
    """Take the optimizer step of a global batch.

    Args:
        job: the run.
        batch: the sequences of the step.
        watch: looks closely at the step, if it is the one.
        attempts: takes it again where memory runs out.

    Returns:
        What the step left.

    Raises:
        DoesNotFitError, UpdateFailedError, StopNow: as `Attempts.take`.
    """
    config, train = job.config, job.data.train
    num_targets = job.target_weights[batch.indices].sum().item()
    rows = train.rows_of(batch.indices)  # all windows of each text
    rate = learning_rate_at(batch.step, job.num_steps, config.schedule, config.learning_rate)

    def attempt(limits: Limits) -> StepResult:
        shares = cut(train.lengths[rows], limits.batch, job.process.world_size)[job.process.rank]
        job.engine.begin_step(len(shares))  # before anything that may run out of memory
        micro_batches = [_collated(job, rows[share]) for share in shares]
        # Dropout's draws depend on step and rank alone, so a resumed run draws what the first would have drawn.
        torch.manual_seed(
            int(np.random.SeedSequence((config.training.seed, batch.step, job.process.rank)).generate_state(1)[0])
        )
        with watch.over(batch.step, micro_batches) as recorder:
            observers = Observers((attempts, recorder, job.meter))
            return step.train_step(job.engine, micro_batches, num_targets or 1, rate, observers)

    return attempts.take(batch.step, attempt)


def wants_trial(job: Job) -> bool:
    """Return whether the worst step is tried first: as asked, else on an accelerator or where memory will be short."""
    asked, plan = job.config.training.trial_step, job.prediction
    if asked != "auto":
        return asked == "always"
    is_near = plan is not None and plan.needed_bytes > _NEAR * plan.budget_bytes
    return job.engine.device.type != "cpu" or is_near


def try_worst(job: Job, attempts: Attempts) -> None:
    """Take the step of the longest sequences, its two largest micro-batches or groups of them alone, and undo it.

    Args:
        job: the run.
        attempts: shrinks its limits where the step does not fit.
    """
    lengths = job.data.train.lengths
    rows = np.argsort(-lengths, kind="stable")[: job.config.batch.global_batch_size]

    def attempt(limits: Limits) -> StepResult:
        shares = cut(lengths[rows], limits.batch, job.process.world_size)[job.process.rank]
        shares = shares[: 2 * job.config.engine.group_size(len(shares))]  # the second adds to the first's sums
        job.engine.begin_step(len(shares))
        micro_batches = [_collated(job, rows[share]) for share in shares]
        return step.train_step(job.engine, micro_batches, 1, 0.0, attempts)

    job.meter.enter(_TRIAL)
    trial(attempts, attempt)
    job.meter.discard(_TRIAL)


def shortest_micro_batch(job: Job) -> MicroBatch:
    """Return a micro-batch of the shortest sequence, whose results nobody reads.

    Args:
        job: the run.
    """
    return _collated(job, np.argmin(job.data.train.lengths, keepdims=True))


def _collated(job: Job, rows: Indices) -> MicroBatch:
    return collate(job.data.train, rows, job.padding, job.engine.device)
