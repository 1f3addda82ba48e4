"""What a run needs to go on: what trains and its moments, whole, as safetensors; written aside and renamed.

A checkpoint knows no topology: it resumes on another number of ranks, another ZeRO stage, another engine. Dropout's
draws are seeded by the step and the data order by the epoch, so no generator needs to be saved.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ftkit.errors import CheckpointError
from ftkit.machine.disk import written_aside

WEIGHTS, MOMENTS, STATE = "trainable.safetensors", "optimizer.safetensors", "state.json"
_KEPT = 2
_ELSEWHERE = "choose another output.folder; the last checkpoint that is there goes on with --resume"


class TrainingState(BaseModel):
    """Where a run stands, and what it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    num_steps: int
    fingerprint: str
    """Of the data."""
    config: dict[str, Any]
    """The resolved configuration, less what may change between start and resume."""
    best_value: float | None = None
    best_step: int | None = None
    num_without_improvement: int = 0
    train_seconds: float = 0.0
    owes_validation: bool = False
    """Whether the run was stopped before the validation that was due at this step."""


Tensors = Mapping[str, torch.Tensor]


def save_checkpoint(folder: Path, state: TrainingState, weights: Tensors, moments: Tensors) -> Path:
    """Write a checkpoint beside the earlier ones and remove the oldest; the last good one always survives.

    Args:
        folder: the run's `checkpoints` folder.
        state: where the run stands.
        weights: what trains, whole, fp32.
        moments: the optimizer's tensors.

    Returns:
        The new checkpoint's folder.

    Raises:
        DeviceError: the disk is full or not writable.
    """
    target = folder / f"step-{state.step:08d}"
    with written_aside(target, _ELSEWHERE) as aside:
        save_file(dict(weights), aside / WEIGHTS)
        save_file(dict(moments), aside / MOMENTS)
        (aside / STATE).write_text(state.model_dump_json(indent=2), encoding="utf-8")
    for old in list_checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return target


def save_best(folder: Path, weights: Tensors) -> None:
    """Keep the weights of the best validation so far; raises as `save_checkpoint` does."""
    with written_aside(folder / "best", _ELSEWHERE) as aside:
        save_file(dict(weights), aside / WEIGHTS)


def load_best(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that `save_best` kept; raises as `load_checkpoint` does."""
    return _read_tensors(folder / "best" / WEIGHTS)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and path.suffix != ".tmp")


def load_checkpoint(path: Path) -> tuple[TrainingState, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read a checkpoint.

    Args:
        path: a checkpoint's folder.

    Returns:
        State, weights, moments.

    Raises:
        CheckpointError: a file is missing, truncated or not one of ours.
    """
    try:
        text = (path / STATE).read_text(encoding="utf-8")
        state = TrainingState.model_validate_json(text)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is truncated or of another version"
        raise CheckpointError(f"cannot read {path / STATE}: {reason}; resume from an older checkpoint") from None
    return state, _read_tensors(path / WEIGHTS), _read_tensors(path / MOMENTS)


def check_resumable(path: Path, saved: TrainingState, config: dict[str, Any], fingerprint: str) -> None:
    """Refuse to go on with another configuration or other data.

    Args:
        path: the checkpoint, to name it.
        saved: what it holds.
        config: the configuration of the run that would go on, as `TrainingState.config`.
        fingerprint: of its data.

    Raises:
        CheckpointError: naming the keys that differ.
    """
    if changed := sorted(_differences(saved.config, config)):
        raise CheckpointError(
            f"{path} was written with another {', '.join(changed)}; resume with the same, or start anew elsewhere"
        )
    if saved.fingerprint != fingerprint:
        raise CheckpointError(f"{path} was trained on other data; resume with the same texts, or start anew elsewhere")


def resumable_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a dumped configuration what may not change between start and resume.

    The cut, the engine, the precision, the output and how often something is looked at may: what is saved is whole, in
    fp32, and knows no topology.
    """
    kept = json.loads(json.dumps({key: value for key, value in config.items() if key not in ("engine", "output")}))
    kept["batch"] = {"global_batch_size": kept["batch"]["global_batch_size"]}
    for key in ("gradient_checkpointing", "precision"):
        kept["model"].pop(key)
    for key in ("log_every", "eval_every", "checkpoint_every", "plan_first", "trial_step"):
        kept["training"].pop(key)
    return dict(kept)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; resume from another checkpoint") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); resume from an older checkpoint") from None


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        yield place
