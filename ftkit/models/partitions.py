"""Weights that ZeRO-3 may have partitioned, by names of DeepSpeed's that are not public."""

from typing import Any, cast

import torch
from torch import nn


def whole_numel(parameter: torch.Tensor) -> int:
    """Return the elements of a weight, which ZeRO-3 may have partitioned (deepspeed 0.19, partition_parameters.py)."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Return the shape of a weight, which ZeRO-3 may have partitioned (deepspeed 0.19, partition_parameters.py)."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights and the saved buffers of a model by their names, a tied one under its first name alone."""
    named: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        named.setdefault(id(tensor), (name, tensor))
    return dict(named.values())


def is_gathered_when_called(module: nn.Module) -> bool:
    """Return whether ZeRO-3 gathers a module's weights when it is called (deepspeed 0.19, zero/parameter_offload.py).

    Whoever reads a weight at another time gathers it, for good (`ZeROOrderedDict.__getitem__`): so ask the module.
    """
    return hasattr(module, "ds_id")


def gathered(parameter: Any) -> torch.Tensor:
    """Return the values of a weight; where ZeRO-3 has partitioned it, it is gathered for this one use.

    The backward of the layer's module has gathered it already, as a rule (deepspeed 0.19, partition_parameters.py).
    """
    if not hasattr(parameter, "ds_status") or parameter.ds_status.name == "AVAILABLE":
        return cast(torch.Tensor, parameter.data)
    parameter.all_gather()
    whole: torch.Tensor = parameter.data
    parameter.partition()
    return whole
