"""From trainable parameters to parameter groups, an optimizer and a learning rate for every step."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ftkit.config.training import OptimizerConfig, ScheduleConfig
from ftkit.models import bnb
from ftkit.models.partitions import whole_shape


def parameter_groups(parameters: Mapping[str, torch.Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Part parameters into those that decay (matrices) and those that do not (biases, norms).

    Args:
        parameters: name to tensor.
        weight_decay: of the matrices.

    Returns:
        One or two groups, none of them empty, with their names.
    """
    decays = {name: tensor for name, tensor in parameters.items() if len(whole_shape(tensor)) >= 2}
    rest = {name: tensor for name, tensor in parameters.items() if name not in decays}
    groups = [(decays, weight_decay), (rest, 0.0)]
    return [{"params": list(group.values()), "weight_decay": decay} for group, decay in groups if group]


def build_optimizer(parameters: Mapping[str, torch.Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a configuration; its learning rate is set before every step.

    Args:
        parameters: name to the tensor that is updated (the fp32 masters in half precision).
        config: the optimizer section.

    Returns:
        torch's fused AdamW, which has no temporary copies, or one of bitsandbytes.
    """
    groups = parameter_groups(parameters, config.weight_decay)
    if config.name != "adamw":
        return bnb.build_optimizer(groups, config)
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)


def learning_rate_at(step: int, num_steps: int, config: ScheduleConfig, peak: float) -> float:
    """Return the learning rate of a step.

    It rises linearly over the warm-up, reaches `peak` at its end, and falls to zero after the last step (linear,
    cosine) or stays (constant).

    Args:
        step: counted from 1.
        num_steps: all steps of the run.
        config: the schedule section.
        peak: the highest rate.

    Returns:
        The rate.
    """
    warmup = config.num_warmup_steps(num_steps)
    done = step - 1
    if done < warmup:
        return peak * step / (warmup + 1)
    if config.name == "constant":
        return peak
    share = (done - warmup) / max(1, num_steps - warmup)
    return peak * (1 - share if config.name == "linear" else 0.5 * (1 + math.cos(math.pi * share)))
