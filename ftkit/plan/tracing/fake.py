"""Make a model without weights ready for a step."""

from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import nn

from ftkit.engine.foreign import own_buffers, own_parameters
from ftkit.models import bnb
from ftkit.models.foreign import is_packed
from ftkit.models.streaming.stream import is_streamed


def materialize(model: nn.Module, mode: AbstractContextManager[Any], device: torch.device) -> nn.Module:
    """Put tensors of the mode that the step runs in, on its device, in the place of a model's tensors on `meta`.

    Tied parameters stay tied; 4-bit weights become packed ones with their constants; streamed ones stay placeholders.

    Args:
        model: on `meta`, all or in part; changed in place.
        mode: the mode that the step will run in: fake tensors, or a device.
        device: where the step thinks that it runs.

    Returns:
        The same model.
    """
    made: dict[int, torch.Tensor] = {}
    with mode:
        for module in model.modules():
            parameters, buffers = own_parameters(module), own_buffers(module)
            for name, parameter in list(parameters.items()):
                if parameter is not None and parameter.is_meta:
                    if id(parameter) not in made:
                        made[id(parameter)] = _parameter(parameter, device)
                    parameters[name] = cast(nn.Parameter, made[id(parameter)])
            for name, buffer in list(buffers.items()):
                if buffer is not None and buffer.is_meta:
                    if id(buffer) not in made:
                        made[id(buffer)] = _empty_like(buffer, device)
                    buffers[name] = made[id(buffer)]
    return model


def _empty_like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _parameter(parameter: nn.Parameter, device: torch.device) -> Any:
    if is_streamed(parameter):
        placeholder = torch.empty((), dtype=parameter.dtype, device=device).expand(parameter.shape)
        made = nn.Parameter(placeholder, requires_grad=False)
        vars(made).update(vars(parameter))
        return made
    if is_packed(parameter):
        return bnb.pack_without_values(parameter, _empty_like(parameter, device))
    return nn.Parameter(_empty_like(parameter, device), requires_grad=parameter.requires_grad)
