"""Choose the engine of a run and put its model onto it."""

import torch
from torch import nn

from ftkit.config.tree import RunConfig
from ftkit.engine.protocol import Engine
from ftkit.machine.process import ProcessContext
from ftkit.models.objective import Objective


def wants_deepspeed(config: RunConfig, process: ProcessContext) -> bool:
    """Return whether a run uses DeepSpeed: asked for by name or by a setting of its own, or its launcher started it."""
    engine = config.engine
    if engine.name != "auto":
        return engine.name == "deepspeed"
    return engine.wants_deepspeed or (process.launcher == "deepspeed" and engine.zero_stage != 0)


def build_engine(
    config: RunConfig, model: nn.Module, process: ProcessContext, dtype: torch.dtype, objective: Objective
) -> Engine:
    """Put a model that is ready to train onto its device or devices.

    Args:
        config: the run.
        model: what `build_model` returned, on the CPU.
        process: the place of this process; its group has been joined.
        dtype: what the model computes in.
        objective: what the model is trained for.

    Returns:
        The engine.
    """
    if wants_deepspeed(config, process):
        from ftkit.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(config, model, process, dtype, objective)
    from ftkit.engine.plain import PlainEngine

    return PlainEngine(config, model, process, dtype, objective)
