"""The changes that a search or a cure may make to a configuration: none of them changes what is learned.

Each step down costs time and saves memory: recomputing layers, smaller micro-batches, moments in 8 bits, weights in 4
bits, partitioning, offloading. The cut of the batch never changes the mathematics, so it is tried first.
"""

import itertools
from typing import Any

from pydantic import ValidationError

from ftkit.config.files import flat, merge_method
from ftkit.config.recompute import LEVELS
from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError
from ftkit.models.methods import method_of
from ftkit.plan.shapes import Sequences, plan_shape
from ftkit.plan.target import Target

Changes = dict[str, Any]
"""Dotted keys with their new values."""
SIZE = "batch.micro_batch_size"
RECOMPUTE = "model.recompute"


def as_flags(changes: Changes) -> str:
    """Return changes as flags of the command line."""
    return " ".join(
        f"--method {value}" if key == "method.name" else f"--set {key}={value}" for key, value in flat(changes).items()
    )


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
        tree[section] = merge_method(tree[section], value) if key == "method.name" else tree[section] | {name: value}
        if key == SIZE:
            tree["batch"]["micro_batch_tokens"] = None
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(str(error)) from None


def value_of(config: RunConfig, key: str) -> Any:
    """Return what a configuration says under a dotted key."""
    section, _, name = key.partition(".")
    return config.model_dump()[section][name]


def steps_down(config: RunConfig, target: Target, sequences: Sequences | None) -> list[Changes]:
    """Return the single changes that save memory, those that cost least first.

    Args:
        config: what they start from.
        target: the devices.
        sequences: the data; None: not at hand.
    """
    batch = plan_shape(config, target.num_devices, sequences).batch
    steps: list[Changes] = [{SIZE: size} for size in halves(batch)[1:]]
    if target.device_type == "cuda" and not config.engine.expandable_segments:
        steps.append({"engine.expandable_segments": True})
    steps += [{RECOMPUTE: level} for number, level in enumerate(LEVELS) if config.model.recompute.saving < number]
    if config.optimizer.name == "adamw":
        steps.append({"optimizer.name": "adamw_8bit"})
    return [*steps, *method_of(config).cheaper(), *zero_choices()]


def grid(config: RunConfig, target: Target, sequences: Sequences | None) -> list[Changes]:
    """Return combinations of changes, those that change least first.

    Args:
        config: what they start from.
        target: the devices.
        sequences: the data; None: not at hand.
    """
    batch = plan_shape(config, target.num_devices, sequences).batch
    whole = -(-config.batch.global_batch_size // target.num_devices)
    sizes = sorted({*halves(batch), *halves(whole)}, reverse=True)[:6]
    methods: list[Changes] = [{}, *method_of(config).cheaper()]
    optimizers: list[Changes] = [{}]
    if config.optimizer.name == "adamw":
        optimizers.append({"optimizer.name": "adamw_8bit"})
    engines: list[Changes] = [{}, {"engine.zero_stage": 0}, *zero_choices()]
    combinations = [
        {SIZE: size, RECOMPUTE: level} | method | optimizer | engine
        for method, optimizer, engine, level, size in itertools.product(methods, optimizers, engines, LEVELS, sizes)
    ]
    return sorted(combinations, key=len)


def zero_choices() -> list[Changes]:
    """Return the ways to share a step out, the least first; the rules say which of them make sense at a target."""
    stages: list[Changes] = [{"engine.zero_stage": stage} for stage in (1, 2, 3)]
    optimizer = {"engine.zero_stage": 2, "engine.offload_optimizer": "cpu"}
    both = {"engine.zero_stage": 3, "engine.offload_optimizer": "cpu", "engine.offload_parameters": "cpu"}
    return [*stages, optimizer, both]


def halves(number: int) -> list[int]:
    """Return a number, its half rounded down, the half of that, and so on to 1."""
    numbers = [number]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    return numbers
