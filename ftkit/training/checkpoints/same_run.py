"""Tell whether a checkpoint is of the run that would go on from it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftkit.config.paths import with_absolute_paths
from ftkit.config.tree import RunConfig
from ftkit.errors import CheckpointError
from ftkit.models.sources.adapters import find_adapter
from ftkit.records.schema import RunRecord
from ftkit.training.checkpoints.checkpoint import TrainingState

ENDS = ("epochs", "max_steps", "early_stopping_patience")
"""The keys of the training section that say when training ends."""
_FREE = (
    "log_every",
    "eval_every",
    "checkpoint_every",
    "plan_first",
    "trial_step",
    "keep_checkpoints",
    "keep_best",
    "checkpoint_shards",
    "score_test",
)
"""Other keys of it that change nothing of what is learned."""


def has_another_end(config: RunConfig, record: RunRecord) -> bool:
    """Return whether a configuration ends training elsewhere than the run of a record did."""
    earlier, asked = record.run.config.get("training", {}), config.training.model_dump(mode="json")
    return any(asked[key] != earlier.get(key) for key in ENDS)


def check_finished(config: RunConfig, record: RunRecord) -> None:
    """Refuse to call a run finished that would be trained otherwise by what is asked now.

    Args:
        config: of the run that is asked for, before anything in it is settled.
        record: of the run that has ended.

    Raises:
        CheckpointError: naming the keys that differ.
    """
    try:
        earlier = RunConfig.model_validate(record.run.config)
    except ValidationError:  # of another version, which had other keys
        return
    settled = (one.settled("cpu") for one in (with_absolute_paths(config), earlier))  # the cut does not count
    new, old = (resumable_part(one.model_dump(mode="json")) for one in settled)
    if find_adapter(config.model.name) is not None:  # whose settings the method takes over
        new.pop("method")
        old.pop("method")
    changed = sorted(key for key in _differences(old, new) if not _is_open(new, key))
    if config.training.score_test and not earlier.training.score_test:  # nothing would score it any more
        changed.append("training.score_test")
    if changed:
        raise CheckpointError(
            f"the run in {config.output.folder} is finished, and was trained with another {', '.join(changed)}; give "
            "the same to leave it as it is, or train anew with another --output"
        )


def _is_open(config: Any, key: str) -> bool:
    """Return whether the data, the model or the machine settles a key, so that a record has more than was asked."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config is None or config in ("auto", "balanced") or (config is True and key == "model.resize_embeddings")


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
    if changed := sorted(_differences(_completed(saved.config), config)):
        raise CheckpointError(
            f"{path} was written with another {', '.join(changed)}; resume with the same, or start anew elsewhere"
        )
    if saved.fingerprint != fingerprint:
        raise CheckpointError(f"{path} was trained on other data; resume with the same texts, or start anew elsewhere")


def check_shapes(path: Path, saved: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights of another model.

    Args:
        path: the checkpoint, to name it.
        saved: of its weights, by name.
        shapes: of what trains in the run that would go on.

    Raises:
        CheckpointError: naming a weight that differs.
    """
    for name in sorted(saved.keys() | shapes.keys()):
        theirs = saved.get(name)
        if theirs != shapes.get(name):
            raise CheckpointError(
                f"{path} is of another model: {name} is {theirs or 'not there'}, and {shapes.get(name) or 'not there'} "
                "in this one; resume with the model that it was written for, or start anew elsewhere"
            )


def resumable_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a dumped configuration what may not change between start and resume.

    The cut, the engine, what recomputes or waits on the host, the precision, the cache, the output, how often something
    is looked at and when training ends may: what is saved is whole, in fp32, and knows no topology.
    """
    is_free = ("engine", "output", "cache").__contains__
    kept = json.loads(json.dumps({key: value for key, value in config.items() if not is_free(key)}))
    kept["batch"] = {"global_batch_size": kept["batch"]["global_batch_size"]}
    # The second is the old name of the first.
    for key in ("recompute", "gradient_checkpointing", "offload_activations", "precision"):
        kept["model"].pop(key, None)
    for key in (*_FREE, *ENDS):
        kept["training"].pop(key)
    return dict(kept)


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier version has saved, with the keys that it did not know at their defaults."""
    try:
        return resumable_part(RunConfig.model_validate(config).model_dump(mode="json"))
    except ValidationError:  # it has keys that ftkit has given up; the comparison names them
        return config


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
