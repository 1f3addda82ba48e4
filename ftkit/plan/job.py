"""A whole job: how long it takes from its command to its end, and the bytes that it writes.

Steps and evaluations are of the traced step's speed, on as many tokens as the data has; what is around them has rates.
"""

import math

from ftkit.config.tree import RunConfig
from ftkit.plan.inputs.shapes import Sequences, epoch_steps, num_checkpoints
from ftkit.plan.inputs.target import Target
from ftkit.plan.predicted import AnyPrediction, TracedPrediction
from ftkit.records.files import CHECKPOINT_BYTES
from ftkit.records.job import JobPlan

ASSUMED_DISK_RATE = 200 * 2**20
"""Bytes per second: a network disk or a hard disk; a run measures its own when it starts."""
_START_SECONDS, _REOPEN_SECONDS, _COPY_SECONDS, _END_SECONDS = 8.0, 3.5, 0.5, 1.5
"""Of one core: Python with torch and transformers, and a plan; a fresh process that opens the result, or a copy of the
first one, which has imported what that takes (`training/standby.py`); the pages."""
_IMPORT_SECONDS, _ENGINE_SECONDS = 2.0, 1.5
"""Of the first: what a run has not seen of itself when it plans, before it and after it (MiniLM, with DeepSpeed)."""
_TOKEN_RATE, _TEXT_RATE = 400_000, 8_000
"""Tokens and texts a second that one core reads, checks, splits and encodes: estimates, and no measurements."""
_TOKEN_BYTES, _BESIDE_BYTES = 4, 11 * 2**18
"""Of a token that is kept; of a tokenizer (0.7 MB for MiniLM), the page of the run (2.0 MB), a record and answers."""


def with_job(
    prediction: AnyPrediction, config: RunConfig, target: Target, sequences: Sequences, so_far: float | None = None
) -> AnyPrediction:
    """Return a prediction that says what the whole job takes; see `job_plan`."""
    return prediction.model_copy(update={"job": job_plan(prediction, config, target, sequences, so_far)})


def write_rate(target: Target) -> tuple[float, str]:
    """Return the bytes per second that a disk takes, and the word for where that is from.

    Args:
        target: where a run computes; the disk was measured where the device was.
    """
    known = target.calibration
    return (float(ASSUMED_DISK_RATE), "assumed") if known is None else (known.disk_write, "measured")


def _read_rate(target: Target) -> float:
    """Return the bytes per second that a disk gives."""
    known = target.calibration
    return float(ASSUMED_DISK_RATE) if known is None else known.disk_read


def job_plan(
    prediction: AnyPrediction, config: RunConfig, target: Target, sequences: Sequences, so_far: float | None = None
) -> JobPlan:
    """Return what a whole job takes.

    Args:
        prediction: of the run.
        config: the run, settled.
        target: where it runs.
        sequences: the data.
        so_far: seconds that the run itself has taken until now, its data and a look at the processor among them; None:
            it has not begun.
    """
    result = prediction.result_bytes + _BESIDE_BYTES
    kept = prediction.disk_bytes + _BESIDE_BYTES - result
    rate, load_seconds = write_rate(target)[0], prediction.source_bytes / _read_rate(target)
    validations, checkpoints = _counts(prediction, config, sequences)
    cached = _cache_bytes(prediction, config, sequences)
    written = (checkpoints or 0) * prediction.num_trainable_parameters * CHECKPOINT_BYTES + result
    is_copied = target.device_type == "cpu" and target.launcher == "none"  # as `can_be_copied` knows for sure
    opening = _COPY_SECONDS if is_copied else _REOPEN_SECONDS
    end = _END_SECONDS + (opening + load_seconds if config.output.reopen else 0.0)
    start = load_seconds + (_START_SECONDS if so_far is None else _IMPORT_SECONDS + so_far + _ENGINE_SECONDS)
    rest = (
        _data_seconds(sequences) if so_far is None else 0.0,
        _trunk_seconds(prediction),
        prediction.total_seconds if isinstance(prediction, TracedPrediction) else None,
        _evaluation_seconds(prediction, config, sequences, validations),
        None if checkpoints is None else written / rate + end,
    )
    known = [one for one in rest if one is not None]
    return JobPlan(
        seconds=start + sum(known) if len(known) == len(rest) else None,
        num_bytes=None if cached is None else kept + result + cached,
        start_seconds=start,
        data_seconds=rest[0],
        trunk_seconds=rest[1],
        steps_seconds=rest[2],
        evaluation_seconds=rest[3],
        save_seconds=rest[4],
        end_seconds=end,
        num_validations=validations,
        num_checkpoints=checkpoints,
        checkpoint_bytes=kept,
        result_bytes=result,
        cache_bytes=cached,
    )


def _counts(prediction: AnyPrediction, config: RunConfig, sequences: Sequences) -> tuple[int | None, int | None]:
    """Return the validations and the checkpoints of a run; None where its steps or epochs are not known."""
    training, steps, num = config.training, prediction.num_steps, sequences.num
    if steps is None or num is None:
        return None, None
    every = training.eval_every or epoch_steps(config, num)
    validations = math.ceil(steps / every) if sequences.validation_tokens else 0
    return validations, num_checkpoints(config, num)


def _data_seconds(sequences: Sequences) -> float | None:
    if sequences.all_tokens is None or sequences.num_all is None:
        return None
    return sequences.all_tokens / _TOKEN_RATE + sequences.num_all / _TEXT_RATE


def _trunk_seconds(prediction: AnyPrediction) -> float | None:
    if prediction.trunk is None or prediction.trunk.is_done:
        return 0.0
    return prediction.trunk.seconds


def _evaluation_seconds(
    prediction: AnyPrediction, config: RunConfig, sequences: Sequences, num_validations: int | None
) -> float | None:
    rate = prediction.evaluation_tokens_per_second
    if rate is None or num_validations is None:
        return None
    test_tokens = sequences.test_tokens if config.training.score_test else 0
    return (num_validations * sequences.validation_tokens + test_tokens) / rate


def _cache_bytes(prediction: AnyPrediction, config: RunConfig, sequences: Sequences) -> int | None:
    """Return the bytes that go into the cache; None where the size of the data is not known."""
    trunk = prediction.trunk
    hidden = 0 if trunk is None or trunk.is_done else trunk.num_bytes
    tokens = _TOKEN_BYTES * sequences.all_tokens if sequences.all_tokens is not None else None
    if hidden is None or tokens is None:
        return None
    return hidden + (tokens if config.cache.tokens else 0)
