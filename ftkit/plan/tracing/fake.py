"""A model without weights: the modules of `model.build_empty_model`, ready for a step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn

from ftkit.models import bnb


def materialize(model: nn.Module, mode: AbstractContextManager[Any], device: torch.device) -> nn.Module:
    """Put tensors of the mode that the step runs in, on its device, in the place of a model's tensors on `meta`.

    Tied parameters stay tied; 4-bit weights become packed ones with their constants.

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
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_meta:
                    if id(parameter) not in made:
                        made[id(parameter)] = _parameter(parameter, device)
                    module._parameters[name] = made[id(parameter)]  # type: ignore[assignment]  # kept by identity
            for name, buffer in list(module._buffers.items()):
                if buffer is not None and buffer.is_meta:
                    if id(buffer) not in made:
                        made[id(buffer)] = _empty_like(buffer, device)
                    module._buffers[name] = made[id(buffer)]
    return model


@contextmanager
def taken_for_fake() -> Iterator[None]:
    """Let transformers take every tensor for a fake one, whose values it does not ask for (utils/import_utils.py)."""
    from transformers.utils import import_utils

    # A function and no return_value: a Mock would keep the tensors that it was called with alive.
    with mock.patch.object(import_utils, "is_fake_tensor", lambda _: True):  # noqa: PT008  # as said
        yield


def _empty_like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _parameter(parameter: nn.Parameter, device: torch.device) -> Any:
    if bnb.is_packed_type(parameter):
        return bnb.pack_without_values(parameter, _empty_like(parameter, device))
    return nn.Parameter(_empty_like(parameter, device), requires_grad=parameter.requires_grad)
