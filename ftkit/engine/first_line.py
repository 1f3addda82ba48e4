"""The first line of a run's record, made here alone: of a run that begins, and of one that could not begin."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from ftkit.engine.resolve import ResolvedRun
from ftkit.machine.versions import versions
from ftkit.records.schema import Prediction, RunLine

Purpose = Literal["training", "profile"]


def first_line(
    name: str,
    run: ResolvedRun,
    device: str,
    num_steps: int,
    prediction: Prediction | None = None,
    purpose: Purpose = "training",
) -> RunLine:
    """Return the first line of a run's record.

    Args:
        name: of the result folder.
        run: what runs.
        device: its name, such as `NVIDIA T4`.
        num_steps: planned optimizer steps.
        prediction: what the plan said, if there was one.
        purpose: what the run is for.

    Returns:
        The line; it begins now.
    """
    return RunLine(
        name=name,
        started=_now(),
        config=run.config.model_dump(mode="json"),
        versions=versions(),
        engine=run.engine.value,
        zero_stage=run.zero_stage,
        offload_optimizer=run.offload_optimizer,
        offload_parameters=run.offload_parameters,
        precision=run.precision,
        world_size=run.devices.world_size,
        device=device,
        num_steps=num_steps,
        prediction=prediction,
        purpose=purpose,
    )


def refused_line(name: str, asked: Mapping[str, Any], world_size: int, purpose: Purpose) -> RunLine:
    """Return the first line of what was asked for and cannot run, so that nothing of it is resolved.

    Args:
        name: of the result folder.
        asked: the configuration, as far as it was said.
        world_size: ranks.
        purpose: what the run was for.
    """
    return RunLine(
        name=name,
        started=_now(),
        config=dict(asked),
        engine="unknown",
        precision="unknown",
        world_size=world_size,
        device="unknown",
        num_steps=0,
        purpose=purpose,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
