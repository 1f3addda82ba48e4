"""Checkpoints: what trains and its moments, whole, as safetensors; written aside and renamed.

A checkpoint knows no topology: it resumes on another number of ranks, another ZeRO stage, another engine. Dropout's
draws are seeded by the step and the data order by the epoch, so no generator needs to be saved.
"""

import hashlib
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
MANIFEST = "manifest.json"
"""Size and SHA-256 of the other files; written last, so that what it vouches for is whole."""
BEST = "best"
"""The file that names the folder of the best weights."""
_BEST_FOLDERS = ("best-a", "best-b")
_NAME = re.compile(r"(step-\d+)(\.replaced)?")
ENDS = ("epochs", "max_steps", "early_stopping_patience")
"""The keys of the training section that say when training ends."""
_ELSEWHERE = "choose another output.folder; the last checkpoint that is there goes on with --resume"


class TrainingState(BaseModel):
    """The state of a run, and what it was trained on."""

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
Loaded = tuple[TrainingState, dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""State, weights, moments."""


def save_checkpoint(folder: Path, state: TrainingState, weights: Tensors, moments: Tensors, keep: int = 2) -> Path:
    """Write a checkpoint beside the earlier ones, read it back, and remove the oldest.

    The last good one always survives: an older one is removed when the new one is whole.

    Args:
        folder: the run's `checkpoints` folder.
        state: where the run stands.
        weights: what trains, whole, fp32.
        moments: the optimizer's tensors.
        keep: checkpoints that stay, this one counted.

    Returns:
        The new checkpoint's folder.

    Raises:
        DeviceError: the disk is full or not writable.
        CheckpointError: what was read back is not what was written.
    """
    target = folder / f"step-{state.step:08d}"
    with written_aside(target, _ELSEWHERE) as aside:
        save_file(dict(weights), aside / WEIGHTS)
        save_file(dict(moments), aside / MOMENTS)
        (aside / STATE).write_text(state.model_dump_json(indent=2), encoding="utf-8")
        manifest = {name: _seal(aside / name) for name in (WEIGHTS, MOMENTS, STATE)}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        _make_way(target)
    shutil.rmtree(_replaced(target), ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def _make_way(target: Path) -> None:
    """Rename an earlier checkpoint of the same step: a damaged one, or one behind which a run was stopped.

    It counts under its other name until the new one has its own, so at no moment is neither there.
    """
    if target.exists():
        shutil.rmtree(_replaced(target), ignore_errors=True)
        target.rename(_replaced(target))


def _replaced(target: Path) -> Path:
    return target.with_name(f"{target.name}.replaced")


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
    """Return the whole checkpoints of a run, oldest first, each the new one if it was being replaced."""
    steps: dict[str, Path] = {}
    for path in sorted(folder.glob("step-*"), reverse=True):  # step-3.replaced comes before step-3, which wins
        if path.is_dir() and (match := _NAME.fullmatch(path.name)):
            steps[match[1]] = path
    return [steps[step] for step in sorted(steps)]


def load_checkpoint(path: Path) -> Loaded:
    """Read a checkpoint.

    Args:
        path: a checkpoint's folder.

    Returns:
        State, weights, moments.

    Raises:
        CheckpointError: a file is missing, truncated or not one of ours.
    """
    cure = "move it away, and --resume goes on from an older checkpoint"
    _verify(path, cure)
    try:
        text = (path / STATE).read_text(encoding="utf-8")
        state = TrainingState.model_validate_json(text)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is truncated or of another version"
        raise CheckpointError(f"cannot read {path / STATE}: {reason}; {cure}") from None
    return state, _read_tensors(path / WEIGHTS, cure), _read_tensors(path / MOMENTS, cure)


def _seal(path: Path) -> dict[str, int | str]:
    """Return the size of a file and the SHA-256 of what is on the disk."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(path: Path, cure: str) -> None:
    """Compare the files of a checkpoint with its manifest; one of an earlier ftkit has none."""
    if not (path / MANIFEST).is_file():
        return
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        damaged = [name for name, seal in manifest.items() if not (path / name).is_file() or _seal(path / name) != seal]
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"cannot read {path / MANIFEST}: {error}; {cure}") from None
    if damaged:
        file = path / damaged[0]
        fault = "is not what was written (its checksum differs)" if file.is_file() else "is missing"
        raise CheckpointError(f"{file} {fault}; {cure}")


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
    for key in ("log_every", "eval_every", "checkpoint_every", "plan_first", "trial_step", "keep_checkpoints", *ENDS):
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
