"""Checkpoints: what trains and its moments, whole, as safetensors; written aside, read back and renamed.

A checkpoint knows no topology: it resumes on another number of ranks, another ZeRO stage, another engine. Dropout's
draws are seeded by seed, step and rank, and the data's order by seed and epoch, so the step says where every random
stream stands and no generator is saved.

    checkpoints/step-00000008/   trainable.safetensors optimizer.safetensors state.json manifest.json
    checkpoints/best-00000004/   trainable.safetensors manifest.json

What no host could hold whole has shards in the place of the two files; see `shards`.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ftkit.errors import CheckpointError
from ftkit.machine.disk import system_errors, written_aside
from ftkit.training.checkpoints.shards import is_sharded, read_shards

WEIGHTS, MOMENTS, STATE = "trainable.safetensors", "optimizer.safetensors", "state.json"
MANIFEST = "manifest.json"
"""Size and SHA-256 of the other files; written last, so that what it vouches for is whole."""
FORMAT = 2
"""Of the files of a checkpoint; a later one that these lines cannot read has a higher number."""
WHOLE, SHARDED = 1, 2
"""The format of two whole files, and that of shards, which came later."""
_NAME = re.compile(r"((?:step|best)-\d+)(\.replaced)?")
ELSEWHERE = "choose another output.folder; the last checkpoint that is there goes on with --resume"
_OLDER = "move it away, and --resume goes on from an older checkpoint"


class TrainingState(BaseModel):
    """The state of a run, and what it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = WHOLE
    step: int
    num_steps: int
    fingerprint: str
    """Of the data."""
    config: dict[str, Any]
    """The resolved configuration, less what may change between start and resume."""
    versions: dict[str, str] = {}
    """Package to version, ftkit's too."""
    validations: dict[int, float | None] = {}
    """Step to the figure that decides which weights are kept; None where it was not finite."""
    best_steps: tuple[int, ...] = ()
    """The steps whose weights are kept beside this checkpoint, the best first."""
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    owes_validation: bool = False
    """Whether the run was stopped before the validation that was due at this step."""


Tensors = Mapping[str, torch.Tensor]
Loaded = tuple[TrainingState, Tensors, Tensors]
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
    _write(target, {WEIGHTS: weights, MOMENTS: moments}, {STATE: state.model_dump_json(indent=2)})
    remove_older(folder, state, keep)
    return target


def remove_older(folder: Path, state: TrainingState, keep: int) -> None:
    """Remove what a new checkpoint takes the place of.

    Args:
        folder: the run's `checkpoints` folder.
        state: of the new checkpoint.
        keep: checkpoints that stay, the new one counted.
    """
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    remove_bests(folder, state.best_steps)


def save_best(folder: Path, step: int, weights: Tensors, best_steps: Collection[int]) -> None:
    """Keep the weights of a validation that is among the best so far; raises as `save_checkpoint` does.

    Args:
        folder: the run's `checkpoints` folder.
        step: of the validation.
        weights: what trains, whole, fp32.
        best_steps: the steps whose weights are to stay, beside those that a checkpoint goes on from.
    """
    _write(best_folder(folder, step), {WEIGHTS: weights}, {})
    remove_bests(folder, best_steps)


def load_best(folder: Path, step: int) -> Tensors:
    """Return the weights that `save_best` kept; raises as `load_checkpoint` does."""
    path, cure = _whole_or_replaced(best_folder(folder, step)), "train anew, with another --output"
    _verify(path, cure)
    return read_shards(path, "weight", cure) if is_sharded(path) else _read_tensors(path / WEIGHTS, cure)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first, each the new one if it was being replaced."""
    steps = {match[1] for path in folder.glob("step-*") if path.is_dir() and (match := _NAME.fullmatch(path.name))}
    return [_whole_or_replaced(folder / step) for step in sorted(steps)]


def load_checkpoint(path: Path) -> Loaded:
    """Read a checkpoint.

    Args:
        path: a checkpoint's folder.

    Returns:
        State, weights, moments.

    Raises:
        CheckpointError: a file is missing, truncated or not one of ours, or a later ftkit has written it.
    """
    _verify(path, _OLDER)
    state = _read_state(path / STATE)
    if is_sharded(path):
        return state, read_shards(path, "weight", _OLDER), read_shards(path, "moment", _OLDER)
    return state, _read_tensors(path / WEIGHTS, _OLDER), _read_tensors(path / MOMENTS, _OLDER)


def _write(target: Path, tensors: Mapping[str, Tensors], texts: Mapping[str, str]) -> None:
    """Write a folder aside, read it back, vouch for it and give it its name."""
    with replacing(target) as aside:
        for name, content in tensors.items():
            save_file(dict(content), aside / name)
            _read_back(aside / name, content)
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        vouch(aside)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a folder that gets the name of a target when the block ends.

    An earlier folder of that name is one that is damaged, or one behind which a run was stopped. It counts under its
    other name until the new one has its own, so at no moment is neither there.
    """
    with written_aside(target, ELSEWHERE) as aside:
        yield aside
        if target.exists():
            shutil.rmtree(_replaced(target), ignore_errors=True)
            target.rename(_replaced(target))
    shutil.rmtree(_replaced(target), ignore_errors=True)


def vouch(aside: Path) -> None:
    """Write the manifest of the files of a folder."""
    manifest = {file.name: _seal(file) for file in sorted(aside.iterdir())}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _read_back(path: Path, written: Tensors) -> None:
    """Compare a file with what it was made of, one tensor after another."""
    with system_errors(), safe_open(path, framework="pt") as file:
        names = set(file.keys())
    differing = [name for name in written if name not in names or not _is_same(_read_alone(path, name), written[name])]
    if differing:
        raise CheckpointError(f"{path} is not what was written ({differing[0]} differs); the disk or the memory fails")


def _read_alone(path: Path, name: str) -> torch.Tensor:
    """Read a tensor of a file that is opened for it alone: what has been read of a mapping stays until that closes."""
    with system_errors(), safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def _is_same(read: torch.Tensor, written: torch.Tensor) -> bool:
    return read.dtype == written.dtype and torch.equal(read, written)


def _replaced(target: Path) -> Path:
    return target.with_name(f"{target.name}.replaced")


def _whole_or_replaced(target: Path) -> Path:
    """Return a folder, or the one that was there before if it had not got its name yet."""
    return target if target.is_dir() or not _replaced(target).is_dir() else _replaced(target)


def best_folder(folder: Path, step: int) -> Path:
    """Return the folder of the weights of a validation.

    Args:
        folder: the run's `checkpoints` folder.
        step: of the validation.
    """
    return folder / f"best-{step:08d}"


def remove_bests(folder: Path, best_steps: Collection[int]) -> None:
    """Remove the weights of validations that neither the run nor a checkpoint that it could go on from asks for."""
    kept = set(best_steps)
    for path in list_checkpoints(folder):
        try:
            kept.update(_read_state(path / STATE).best_steps)
        except CheckpointError:  # damaged: nothing goes on from it, and it is told where a run would
            continue
    for path in folder.glob("best-*"):
        match = _NAME.fullmatch(path.name)
        if match and int(match[1].removeprefix("best-")) not in kept:
            shutil.rmtree(path)


def _read_state(file: Path) -> TrainingState:
    """Read the state of a checkpoint; one of a later format is told from one that is damaged."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}; {_OLDER}") from None
    if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
        writer = raw["versions"].get("ftkit") if isinstance(raw.get("versions"), dict) else None
        raise CheckpointError(
            f"{file} was written by a later ftkit ({writer or 'of unknown version'}, format {raw['format']}, and this "
            f"one reads format {FORMAT}); go on with that version, or {_OLDER}"
        )
    try:
        return TrainingState.model_validate(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "its content"
        raise CheckpointError(f"{file} is not the state of a run ({key}: {fault['msg'].lower()}); {_OLDER}") from None


def _seal(path: Path) -> dict[str, int | str]:
    """Return the size of a file and the SHA-256 of what is on the disk."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(path: Path, cure: str) -> None:
    """Compare the files of a folder with its manifest, which is written last."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        damaged = [name for name, seal in manifest.items() if not (path / name).is_file() or _seal(path / name) != seal]
    except FileNotFoundError:
        raise CheckpointError(
            f"{path / MANIFEST} is missing, so {path.name} is half written or not a checkpoint of ftkit; {cure}"
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"cannot read {path / MANIFEST}: {error}; {cure}") from None
    if damaged:
        file = path / damaged[0]
        fault = "is not what was written (its checksum differs)" if file.is_file() else "is missing"
        raise CheckpointError(f"{file} {fault}; {cure}")


def _read_tensors(path: Path, cure: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {cure}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); {cure}") from None
