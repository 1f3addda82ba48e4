"""A model without weights: the modules of `model.build_empty_model`, their tensors fake ones of the CPU."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ftkit import bnb


def materialize(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Put fake tensors in the place of a model's tensors on `meta`.

    Tied parameters stay tied; 4-bit weights become packed ones with their constants.

    Args:
        model: on `meta`; changed in place.
        mode: the mode that the step will run in.

    Returns:
        The same model.
    """
    made: dict[int, torch.Tensor] = {}
    with mode:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    if id(parameter) not in made:
                        made[id(parameter)] = _parameter(parameter)
                    module._parameters[name] = made[id(parameter)]  # type: ignore[assignment]  # kept by identity
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    if id(buffer) not in made:
                        made[id(buffer)] = _fake(buffer)
                    module._buffers[name] = made[id(buffer)]
    return model


def hidden_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model that are neither parameters nor buffers: the constants of 4-bit weights."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            found |= {f"{name}.{key}": tensor for key, tensor in bnb.state_tensors(state).items()}
    return found


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def _parameter(parameter: nn.Parameter) -> Any:
    if bnb.is_packed_type(parameter):
        return bnb.pack_without_values(parameter, _fake(parameter))
    return nn.Parameter(_fake(parameter), requires_grad=parameter.requires_grad)
