"""Checkpoints: what trains and its moments, whole, as safetensors; written aside and renamed.

A checkpoint knows no topology: it resumes on another number of ranks, another ZeRO stage, another engine. Dropout's
draws are seeded by the step and the data order by the epoch, so no generator needs to be saved.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ftkit.errors import CheckpointError
from ftkit.machine.disk import replace_text, written_aside

WEIGHTS, MOMENTS, STATE = "trainable.safetensors", "optimizer.safetensors", "state.json"
BEST = "best"
"""The file that names the folder of the best weights."""
_BEST_FOLDERS = ("best-a", "best-b")
_NAME = re.compile(r"step-\d+")
_KEPT = 2
ENDS = ("epochs", "max_steps", "early_stopping_patience")
"""The keys of the training section that say when training ends."""
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
    total_seconds: float = 0.0
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
    """Keep the weights of the best validation so far; raises as `save_checkpoint` does.

    Two folders take turns, and a file names the one that counts. The file is replaced in one go when the new weights
    are on the disk, so at no moment are there none.

    Args:
        folder: the run's `checkpoints` folder.
        weights: what trains, whole, fp32.
    """
    old = _best_folder(folder)
    new = folder / next(name for name in _BEST_FOLDERS if name != old.name)
    shutil.rmtree(new, ignore_errors=True)
    with written_aside(new, _ELSEWHERE) as aside:
        save_file(dict(weights), aside / WEIGHTS)
    replace_text(folder / BEST, new.name)
    shutil.rmtree(old, ignore_errors=True)


def load_best(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that `save_best` kept; raises as `load_checkpoint` does."""
    return _read_tensors(_best_folder(folder) / WEIGHTS, "train anew, with another --output")


def _best_folder(folder: Path) -> Path:
    """Return the folder of the best weights; before the first of them, the one that is not written first."""
    named = folder / BEST
    name = named.read_text(encoding="utf-8").strip() if named.is_file() else ""
    return folder / (name if name in _BEST_FOLDERS else _BEST_FOLDERS[-1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and _NAME.fullmatch(path.name))


def load_checkpoint(path: Path) -> tuple[TrainingState, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read a checkpoint.

    Args:
        path: a checkpoint's folder.

    Returns:
        State, weights, moments.

    Raises:
        CheckpointError: a file is missing, truncated or not one of ours.
    """
    cure = "move it away, and --resume goes on from an older checkpoint"
    try:
        text = (path / STATE).read_text(encoding="utf-8")
        state = TrainingState.model_validate_json(text)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is truncated or of another version"
        raise CheckpointError(f"cannot read {path / STATE}: {reason}; {cure}") from None
    return state, _read_tensors(path / WEIGHTS, cure), _read_tensors(path / MOMENTS, cure)


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

    The cut, the engine, the precision, the output, how often something is looked at and when training ends may: what is
    saved is whole, in fp32, and knows no topology.
    """
    kept = json.loads(json.dumps({key: value for key, value in config.items() if key not in ("engine", "output")}))
    kept["batch"] = {"global_batch_size": kept["batch"]["global_batch_size"]}
    for key in ("gradient_checkpointing", "precision"):
        kept["model"].pop(key)
    for key in ("log_every", "eval_every", "checkpoint_every", "plan_first", "trial_step", *ENDS):
        kept["training"].pop(key)
    return dict(kept)


def _read_tensors(path: Path, cure: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {cure}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); {cure}") from None


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        yield place
