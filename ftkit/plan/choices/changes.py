"""The changes to a configuration that a search, a cure or advice may try.

A search and a cure change nothing of what is learned. Each of their steps down costs time and saves memory: recomputing
layers, smaller micro-batches, activations that wait on the host, moments in 8 bits, weights in 4 bits, partitioning,
offloading. The cut of the batch never changes the mathematics, so it is tried first. Advice looks in all directions, at
what is learned too.
"""

import itertools
from enum import StrEnum
from typing import Any

from ftkit.config.files import build_config, flat, merge_method
from ftkit.config.flags import as_flag
from ftkit.config.methods import methods
from ftkit.config.recompute import LEVELS
from ftkit.config.tree import CUTS as CUT_NAMES
from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import EngineKind, resolve
from ftkit.models.methods import method_of
from ftkit.plan.inputs.shapes import Sequences, plan_shape, rank_share
from ftkit.plan.inputs.target import Target

Changes = dict[str, Any]
"""Dotted keys with their new values."""
SIZE, TOKENS = "batch.micro_batch_size", "batch.micro_batch_tokens"
CUTS = (SIZE, TOKENS)
"""The keys that cut the batch."""
RECOMPUTE = "model.recompute"
OFFLOAD = "model.offload_activations"
LENGTH, RANK, METHOD, OPTIMIZER = "data.max_length", "method.rank", "method.name", "optimizer.name"
STREAM, GROUP, HEAD = "engine.stream_layers", "engine.stream_micro_batches", "engine.stream_head"
RECOMPUTING: tuple[Changes, ...] = ({RECOMPUTE: "cheap"}, {RECOMPUTE: "layer"})
"""The levels of layers whose weights leave: each of them computes again at least what is cheap."""
_FEW = 4
"""Micro-batches through a streamed layer together where all of a step keep too much: layers come a quarter as often."""
_TOP = "method.top_layers"
_CPU_TOKENS = 2048
"""Of the largest micro-batch on a CPU: of the steps that were measured (docs/performance.md) none was quicker with
more."""


class Effect(StrEnum):
    """The effect of a change on what comes out of a run."""

    NONE = "the same result up to rounding"
    ROUNDING = "frozen weights or moments in fewer or more bits"
    LEARNED = "other weights train, or on texts of another length"


def as_flags(changes: Changes) -> str:
    """Return changes as flags of the command line."""
    return " ".join(as_flag(key, value) for key, value in flat(changes).items())


def changed(config: RunConfig, changes: Changes) -> RunConfig:
    """Return a configuration with some keys changed.

    Args:
        config: the old one.
        changes: dotted key to value; another method keeps the fields that it has too.

    Returns:
        The new one.

    Raises:
        ConfigError: the values do not go together.
    """
    tree = config.model_dump()
    for key, value in changes.items():
        section, _, name = key.partition(".")
        tree[section] = merge_method(tree[section], value) if key == METHOD else tree[section] | {name: value}
        if key in CUTS:
            tree["batch"] |= dict.fromkeys(CUT_NAMES, None) | {name: value}
    return build_config(tree)


def value_of(config: RunConfig, key: str) -> Any:
    """Return what a configuration says under a dotted key."""
    section, _, name = key.partition(".")
    return config.model_dump()[section][name]


def steps_down(config: RunConfig, target: Target, sequences: Sequences) -> list[Changes]:
    """Return the single changes that save memory, those that cost least first.

    Args:
        config: what they start from.
        target: the devices.
        sequences: the data.
    """
    batch = plan_shape(config, target.num_devices, sequences).batch
    steps: list[Changes] = [{GROUP: 1}] if config.engine.stream_micro_batches != 1 else []
    if config.task == "causal-lm" and config.engine.stream_layers != "none" and not config.engine.stream_head:
        steps.append({HEAD: True})
    steps += [_cut_to(size, config, sequences) for size in halves(batch)[1:]]
    if target.device_type == "cuda" and not config.engine.expandable_segments:
        steps.append({"engine.expandable_segments": True})
    saving = resolve(config, target.devices).config.model.recompute.saving  # a streamed layer always recomputes
    steps += [{RECOMPUTE: level} for number, level in enumerate(LEVELS) if saving < number]
    if target.device_type == "cuda" and not config.model.offload_activations:
        steps.append({OFFLOAD: True})
    if config.optimizer.name == "adamw":
        steps.append({OPTIMIZER: "adamw_8bit"})
    return [*steps, *stream_choices(config, target), *method_of(config).cheaper(), *zero_choices()]


def _cut_to(size: int, config: RunConfig, sequences: Sequences) -> Changes:
    """Return the change to micro-batches of so many of the longest sequences, by the key that cuts a run already.

    Both keys together are refused, so that a flag of the other could not be put behind the run's own.
    """
    if config.batch.micro_batch_tokens is not None:
        return {TOKENS: size * sequences.longest}
    return {SIZE: size}


def takes_fewer_bits(changes: Changes) -> bool:
    """Return whether some steps down round frozen weights or moments, while all others leave the mathematics alone."""
    return bool(changes.keys() & {METHOD, OPTIMIZER})


def grid(config: RunConfig, target: Target, sequences: Sequences) -> list[Changes]:
    """Return combinations of changes, those that change least first.

    Args:
        config: what they start from.
        target: the devices.
        sequences: the data.
    """
    batch = plan_shape(config, target.num_devices, sequences).batch
    sizes = sorted({*halves(batch), *halves(most_sequences(config, target, sequences))}, reverse=True)[:6]
    methods: list[Changes] = [{}, *method_of(config).cheaper()]
    optimizers: list[Changes] = [{}]
    if config.optimizer.name == "adamw":
        optimizers.append({OPTIMIZER: "adamw_8bit"})
    engines: list[Changes] = [{}, {"engine.zero_stage": 0}, *zero_choices()]
    kept: list[Changes] = [{RECOMPUTE: level} for level in LEVELS]
    if target.device_type == "cuda":
        kept.append({RECOMPUTE: "layer", OFFLOAD: True})
    combinations: list[Changes] = [
        {SIZE: size} | level | method | optimizer | engine
        for method, optimizer, engine, level, size in itertools.product(methods, optimizers, engines, kept, sizes)
    ]
    streams = stream_choices(config, target) if config.engine.stream_layers == "none" else [{}]
    combinations += [
        {SIZE: size} | stream | level | group
        for size in sizes
        for group in group_choices(config, target, sequences, {SIZE: size})
        for stream, level in itertools.product(streams, RECOMPUTING)
    ]
    return sorted(combinations, key=len)


def alternatives(
    config: RunConfig, target: Target, sequences: Sequences, longest: int, num_layers: int
) -> list[Changes]:
    """Return single changes in all directions: every kind of step that `steps_down` has, and those on what is learned.

    Args:
        config: what they start from.
        target: the devices.
        sequences: the data.
        longest: tokens that the model can read at most.
        num_layers: of the model.
    """
    batch = plan_shape(config, target.num_devices, sequences).batch
    most, length = rank_share(config, target.num_devices, sequences), config.data.max_length
    sizes = sorted({1, batch // 2, 2 * batch})
    found = [_cut_to(size, config, sequences) for size in sizes if 0 < size <= most]
    found += [{RECOMPUTE: level} for level in LEVELS]
    found += [{"model.lean": not config.model.lean}, {"engine.zero_stage": 0}, *zero_choices()]
    found += stream_choices(config, target)
    if target.device_type == "cuda":
        found.append({"engine.expandable_segments": not config.engine.expandable_segments})
        found.append({OFFLOAD: not config.model.offload_activations})
    if config.method.leaves_trunk:
        found += [{"cache.trunk": "on"}, {"cache.trunk": "off"}]
    found += [{OPTIMIZER: name} for name in ("adamw", "adamw_8bit")] + [{METHOD: name} for name in methods()]
    found += [{LENGTH: tokens} for tokens in (length // 2, 2 * length) if 2 <= tokens <= longest]
    if (rank := getattr(config.method, "rank", None)) is not None:
        found += [{RANK: number} for number in (rank // 2, 2 * rank) if number]
    if "top_layers" in type(config.method).model_fields:
        found += [{_TOP: None}, {_TOP: max(1, num_layers // 2)}]
    return found


def effect_of(config: RunConfig, changes: Changes) -> Effect:
    """Return what changes do to the result of a run.

    Args:
        config: the run that they change.
        changes: dotted keys with their new values.
    """
    new = changed(config, changes)
    keys = changes.keys()
    if keys & {LENGTH, RANK, _TOP} or (
        METHOD in keys and not _is_cheaper(config, new) and not _is_cheaper(new, config)
    ):
        return Effect.LEARNED
    is_rounded = METHOD in keys or ("8bit" in config.optimizer.name) != ("8bit" in new.optimizer.name)
    return Effect.ROUNDING if is_rounded else Effect.NONE


def _is_cheaper(config: RunConfig, new: RunConfig) -> bool:
    """Whether a run's method is the cheaper form of another run's, such as adapters over weights in 4 bits."""
    return {METHOD: new.method.name} in method_of(config).cheaper()


def most_sequences(config: RunConfig, target: Target, sequences: Sequences) -> int:
    """Return the sequences of the largest micro-batch that may be the quickest.

    On a GPU it is all that a rank gets of a global batch, and on a CPU no more than `_CPU_TOKENS`.
    """
    share = rank_share(config, target.num_devices, sequences)
    if target.device_type != "cpu":
        return share
    return min(share, max(1, _CPU_TOKENS // sequences.longest))


def zero_choices() -> list[Changes]:
    """Return the ways to share a step out, the least first; the rules say which of them make sense at a target."""
    stages: list[Changes] = [{"engine.zero_stage": stage} for stage in (1, 2, 3)]
    optimizer = {"engine.zero_stage": 2, "engine.offload_optimizer": "cpu"}
    both = {"engine.zero_stage": 3, "engine.offload_optimizer": "cpu", "engine.offload_parameters": "cpu"}
    return [*stages, optimizer, both]


def stream_choices(config: RunConfig, target: Target) -> list[Changes]:
    """Return the places that frozen layers may be streamed from, the quicker one first; none where one is named.

    The plain engine streams, so where the launcher brings DeepSpeed it is chosen too.

    Args:
        config: what the changes start from.
        target: the devices.
    """
    if config.engine.stream_layers != "none":
        return []
    is_plain = resolve(config, target.devices).engine is EngineKind.PLAIN
    engine: Changes = {} if is_plain else {"engine.zero_stage": 0}
    return [{STREAM: place} | engine for place in (("disk",) if target.device_type == "cpu" else ("ram", "disk"))]


def group_choices(config: RunConfig, target: Target, sequences: Sequences, cut: Changes) -> list[Changes]:
    """Return how many micro-batches may go through a streamed layer together: one first; that which is named, alone.

    Args:
        config: what the changes start from.
        target: the devices.
        sequences: the data.
        cut: a change to the size of the micro-batch; empty: as it is.
    """
    if config.engine.stream_micro_batches != 1:
        return [{}]
    number = plan_shape(changed(config, cut), target.num_devices, sequences).num_micro_batches
    # A few of no more than there are would be all of them, and their bytes would not grow with the cut along a line.
    few: list[Changes] = [{GROUP: _FEW}] if number > _FEW else []
    return [{}, *few, *([{GROUP: "all"}] if number > 1 else [])]


def halves(number: int) -> list[int]:
    """Return a number, its half rounded down, the half of that, and so on to 1."""
    numbers = [number]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    return numbers
