"""Tell whether a model's weights alone leave no room, from its configuration, before any data and any trace."""

from collections import Counter
from typing import Any

import torch

from ftkit.engine.resolve import EngineKind, ResolvedRun
from ftkit.models.bnb import least_bytes
from ftkit.models.build import build_empty_model
from ftkit.models.streaming.stream import resident_bytes
from ftkit.observe.attribution import layer_named
from ftkit.observe.recorded import layer_names
from ftkit.plan.inputs.target import Target
from ftkit.plan.tracing.layer_choice import choose_layers
from ftkit.units import format_bytes


def least_weight_bytes(run: ResolvedRun, architecture: Any) -> int:
    """Return the least that a run's weights take of one device.

    Args:
        run: the run.
        architecture: of its model.

    Returns:
        Bytes: two weights in each byte where they are packed in 4 bits, without their constants; a rank's share where
        ZeRO-3 partitions them, and nothing where they live on the host.

    Raises:
        ModelError: there is no such model for the task, or the method does not fit it.
    """
    if run.offload_parameters != "none":
        return 0
    if run.config.engine.stream_layers != "none":
        resident = resident_bytes(build_empty_model(run.config, architecture, run.dtype))
        assert resident is not None
        return resident
    whole = _whole_bytes(run, architecture)
    return whole // run.devices.world_size if run.partitions_weights else whole


def _whole_bytes(run: ResolvedRun, architecture: Any) -> int:
    """Return the least that all weights take, by a few layers that stand for all: PEFT adapts a deep model for long."""
    shallow = choose_layers(run.config, architecture)
    model = build_empty_model(shallow.config, shallow.architecture, run.dtype)
    layers, sizes = layer_names(model), Counter[int | None]()
    for name, weight in model.named_parameters():  # which yields tied weights once
        sizes[layer_named(name, layers)] += least_bytes(weight)
    if shallow.is_whole:
        return sizes.total()
    return sizes[None] + sum(sizes[number] * times for number, times in shallow.copies.items())


def states_reason(target: Target, run: ResolvedRun, weight_bytes: int) -> str | None:
    """Return why weights that all train do not fit on a device with masters and moments alone; None where they may.

    Args:
        target: the devices.
        run: the run; of the plain engine, which keeps all of them on each device.
        weight_bytes: of one device.
    """
    if not run.config.method.trains_all or run.engine is not EngineKind.PLAIN or run.config.optimizer.name != "adamw":
        return None
    masters = 0 if run.dtype is torch.float32 else 4
    least = weight_bytes + weight_bytes // run.dtype.itemsize * (masters + 8)
    if least <= target.memory_bytes - target.context_bytes:
        return None
    have = f"the {format_bytes(target.memory_bytes)} of {target.name}"
    return f"its weights, their masters and moments alone are {format_bytes(least)}, more than {have}"


def weights_reason(target: Target, weight_bytes: int) -> str | None:
    """Return why weights alone do not fit on a device; None where they do.

    Args:
        target: the devices.
        weight_bytes: of one device.
    """
    if weight_bytes <= target.memory_bytes - target.context_bytes:
        return None
    have = f"the {format_bytes(target.memory_bytes)} of {target.name}"
    if target.context_bytes > target.memory_bytes:
        return f"CUDA's context alone is {format_bytes(target.context_bytes)}, more than {have}"
    taken = f" less the {format_bytes(target.context_bytes)} of CUDA's context" if target.context_bytes else ""
    return f"its weights alone are {format_bytes(weight_bytes)}, more than {have}{taken}"
