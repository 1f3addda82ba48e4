"""Tell whether a checkpoint is of the run that would go on from it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ftkit.config.tree import RunConfig
from ftkit.errors import CheckpointError
from ftkit.records.schema import RunRecord
from ftkit.training.checkpoints.checkpoint import TrainingState

ENDS = ("epochs", "max_steps", "early_stopping_patience")
"""The keys of the training section that say when training ends."""
_FREE = ("log_every", "eval_every", "checkpoint_every", "plan_first", "trial_step", "keep_checkpoints", "keep_best")
"""Other keys of it that change nothing of what is learned."""


def has_another_end(config: RunConfig, record: RunRecord) -> bool:
    """Return whether a configuration ends training elsewhere than the run of a record did."""
    earlier, asked = record.run.config.get("training", {}), config.training.model_dump(mode="json")
    return any(asked[key] != earlier.get(key) for key in ENDS)


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


def check_shapes(path: Path, saved: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights of another model.

    Args:
        path: the checkpoint, to name it.
        saved: its weights, by name; each has a `shape`.
        shapes: of what trains in the run that would go on.

    Raises:
        CheckpointError: naming a weight that differs.
    """
    for name in sorted(saved.keys() | shapes.keys()):
        theirs = tuple(saved[name].shape) if name in saved else None
        if theirs != shapes.get(name):
            raise CheckpointError(
                f"{path} is of another model: {name} is {theirs or 'not there'}, and {shapes.get(name) or 'not there'} "
                "in this one; resume with the model that it was written for, or start anew elsewhere"
            )


def resumable_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a dumped configuration what may not change between start and resume.

    The cut, the engine, the precision, the cache, the output, how often something is looked at and when training ends
    may: what is saved is whole, in fp32, and knows no topology.
    """
    is_free = ("engine", "output", "cache").__contains__
    kept = json.loads(json.dumps({key: value for key, value in config.items() if not is_free(key)}))
    kept["batch"] = {"global_batch_size": kept["batch"]["global_batch_size"]}
    for key in ("recompute", "gradient_checkpointing", "precision"):  # the second is the old name of the first
        kept["model"].pop(key, None)
    for key in (*_FREE, *ENDS):
        kept["training"].pop(key)
    return dict(kept)


def changed_versions(saved: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return the libraries whose versions differ, as a phrase; empty where none does.

    Args:
        saved: package to version, of the checkpoint.
        now: of this process.
    """
    return ", ".join(
        f"{name} {saved.get(name, 'none')} (now {now.get(name, 'none')})"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    )


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        yield place
