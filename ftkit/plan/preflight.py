"""Before training: predict the run on this machine, settle its cut, and refuse what would not fit.

The first rank plans; the others hear what it found.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ftkit.config.tree import BatchConfig, RunConfig
from ftkit.engine.resolve import resolve
from ftkit.errors import DoesNotFitError
from ftkit.machine.process import ProcessContext, first_decides
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.search import as_flags, cures, settled
from ftkit.plan.shapes import Sequences
from ftkit.plan.target import Target, find_target
from ftkit.plan.weights import least_weight_bytes, weights_reason
from ftkit.records.schema import Prediction
from ftkit.units import format_bytes


def check_weights(config: RunConfig, process: ProcessContext, architecture: Any) -> None:
    """Refuse a run whose weights alone exceed the device, before any data is read.

    Args:
        config: the run.
        process: the place of this process; every process of the job calls this.
        architecture: of the model; its labels need not be known yet.

    Raises:
        DoesNotFitError: the weights do not fit; the cheapest changes that would are named.
    """
    if not config.training.plan_first:
        return
    if (
        refusal := first_decides(process, lambda: _weights_refusal(config, _target(process), architecture))
    ) is not None:
        raise DoesNotFitError(refusal)


def plan_first(
    config: RunConfig,
    process: ProcessContext,
    architecture: Any,
    sequences: Sequences,
    note: Callable[[str], None],
) -> tuple[BatchConfig, Prediction | None]:
    """Predict a run on the machine that it is about to run on.

    Args:
        config: the run.
        process: the place of this process; every process of the job calls this.
        architecture: of the model, with its labels.
        sequences: the data.
        note: told what was found, in one line.

    Returns:
        The cut, with `micro_batch_tokens: auto` replaced by a number, and the prediction; None where planning is off
        or was not possible.

    Raises:
        DoesNotFitError: the run is predicted not to fit; the cheapest changes that would are named.
    """
    if not config.training.plan_first and config.batch.micro_batch_tokens != "auto":
        return config.batch, None
    return first_decides(process, lambda: _plan(config, process, architecture, sequences, note))


def _plan(
    config: RunConfig, process: ProcessContext, architecture: Any, sequences: Sequences, note: Callable[[str], None]
) -> tuple[BatchConfig, Prediction | None]:
    target, refusal = _target(process), None
    try:
        tapes: Tapes = {}
        config = settled(config, target, architecture, sequences, tapes)
        prediction = predict(config, target, architecture, sequences=sequences, tapes=tapes)
        if config.training.plan_first:
            refusal = _refusal(config, target, architecture, sequences, prediction)
    except Exception as error:  # a planner that fails on an unusual model must not stop its training
        note(f"warning: no plan for this run ({type(error).__name__}: {' '.join(str(error).split())[:300]})")
        return _with_number(config.batch), None
    if refusal is not None:
        raise DoesNotFitError(refusal)
    note(_line(prediction))
    return config.batch, prediction


def _target(process: ProcessContext) -> Target:
    """Return this machine as the job uses it; the host memory of several machines is not known here."""
    target = find_target(num_devices=process.world_size, launcher=process.launcher)
    return (
        target if process.local_world_size == process.world_size else replace(target, ram_bytes=None, locked_bytes=None)
    )


def _weights_refusal(config: RunConfig, target: Target, architecture: Any) -> str | None:
    reason = weights_reason(target, least_weight_bytes(resolve(config, target.devices), architecture))
    return None if reason is None else _with_cures(f"this run does not fit: {reason}", config, target, architecture)


def _refusal(
    config: RunConfig, target: Target, architecture: Any, sequences: Sequences, prediction: Prediction
) -> str | None:
    """Return why a run is refused; a formula's word is not enough for that."""
    if prediction.fits or not (prediction.basis or "").startswith("traced"):
        return None
    return _with_cures(f"this run {prediction.reason}", config, target, architecture, sequences)


def _with_cures(
    reason: str, config: RunConfig, target: Target, architecture: Any, sequences: Sequences | None = None
) -> str:
    found = cures(config, target, architecture, sequences=sequences)
    ways = "; ".join(f"{as_flags(one.changes)} ({format_bytes(one.needed_bytes)})" for one in found)
    cure = f"what would fit: {ways}" if found else "nothing that ftkit can change makes it fit: take a smaller model"
    return f"{reason}; {cure}. To run it all the same: --no-plan"


def _line(prediction: Prediction) -> str:
    verdict = "fits" if prediction.fits else f"does not fit: it {prediction.reason}"
    peak, budget = format_bytes(prediction.peak_process_bytes or 0), format_bytes(prediction.budget_bytes or 0)
    how = "" if (prediction.basis or "").startswith("traced") else f", {prediction.basis}"
    return f"plan: {verdict}; {peak} of {budget} in micro-batches of {prediction.micro_batch_size}{how}"


def _with_number(batch: BatchConfig) -> BatchConfig:
    """Return the default cut where no plan could choose one."""
    if batch.micro_batch_tokens != "auto":
        return batch
    return batch.model_copy(update={"micro_batch_tokens": batch.default_micro_batch_tokens})
