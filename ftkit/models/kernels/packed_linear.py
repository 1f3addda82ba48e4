"""A frozen linear layer in 4 bits whose graph refers to its weight and does not keep it.

bitsandbytes' product keeps the packed weight on its context (bitsandbytes 0.50, autograd/_functions.py, MatMul4Bit):
not among the saved tensors, so that no hook and no checkpoint takes it away. The bytes that ZeRO-3 has gathered would
live from the forward of each layer to the end of the backward. Here the backward asks the parameter again, whose
weight DeepSpeed has gathered by then, before the backward of the layer's module.

Dimension letters: I in, O out.
"""

from typing import Any, cast

import torch
from torch import nn

from ftkit.models import bnb, foreign
from ftkit.models.partitions import gathered


def forget_weights(model: nn.Module) -> None:
    """Let the 4-bit linear layers of a model read their weight again in the backward.

    Values, gradients and what is computed for them are those of bitsandbytes.

    Args:
        model: quantized, with weights or on `meta`; changed in place.
    """
    for module in model.modules():
        if bnb.is_linear(module) and foreign.is_packed(cast(torch.Tensor, module.weight)):
            vars(module)["forward"] = _ForgetfulForward(module)


class _ForgetfulForward:
    """The forward of a 4-bit linear layer."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer = self._layer
        # A bias that trains has a gradient, which bitsandbytes' own product makes.
        is_bias_trained = layer.bias is not None and layer.bias.requires_grad
        if is_bias_trained or not (torch.is_grad_enabled() and x.requires_grad):
            return cast(torch.Tensor, type(layer).forward(layer, x))
        result: torch.Tensor = _PackedLinear.apply(  # type: ignore[no-untyped-call]  # torch types `apply` for no function
            x.to(layer.compute_dtype), layer, layer.weight
        )
        return result.to(x.dtype)


class _PackedLinear(torch.autograd.Function):
    """Keeps the parameter, whose values come and go, and none of its tensors."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Module, weight_OI: Any) -> torch.Tensor:
        ctx.weight_OI = weight_OI
        return cast(torch.Tensor, type(layer).forward(layer, x))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        weight_OI = ctx.weight_OI
        whole_OI = bnb.unpacked(gathered(weight_OI), weight_OI.quant_state)
        return grads[0] @ whole_OI.to(grads[0].dtype), None, None
