"""A frozen linear layer with a LoRA adapter as one autograd function.

PEFT's forward adds `lora_B(lora_A(dropout(x))) * scaling` to the layer's result (peft/tuners/lora/layer.py), and keeps
for the backward the input, the dropout's mask, its result, the rank-r product, the scaled product and the sum. Here the
input alone is kept. The backward computes the rank-r product again, which costs r / out of the layer's own product,
and both passes add into the result in place.

Dimension letters: N token, I in, O out, R rank.
"""

from typing import Any

import torch
from torch import nn

from ftkit.models import bnb
from ftkit.models.kernels import dropout
from ftkit.models.kernels.kept_products import keep_whole
from ftkit.models.partitions import is_gathered_when_called


def lora_linear(
    x: torch.Tensor, base: nn.Module, down_RI: torch.Tensor, up_OR: torch.Tensor, scaling: float, rate: float = 0.0
) -> torch.Tensor:
    """Return `base(x) + scaling * dropout(x) @ down.T @ up.T`.

    Equals what PEFT computes up to rounding: the adapter's part is scaled and added before it is rounded to the
    compute dtype, and not after each of the two.

    Args:
        x: [..., I] in the compute dtype.
        base: frozen: `nn.Linear`, transformers' Conv1D, or bitsandbytes' Linear4bit.
        down_RI: the weight of `lora_A`.
        up_OR: the weight of `lora_B`.
        scaling: multiplies the adapter's part.
        rate: of the dropout on the adapter's input; 0 in evaluation.
    """
    seed = dropout.draw_seed(x) if rate else 0
    result: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]  # torch types `apply` for no function
        x, down_RI, up_OR, base, scaling / (1 - rate), rate, seed
    )
    return result


class _LoraLinear(torch.autograd.Function):
    """Keeps the input and the two small matrices."""

    @staticmethod
    def forward(  # noqa: PLR0913  # what autograd differentiates stands beside what it does not
        ctx: Any,
        x: torch.Tensor,
        down_RI: torch.Tensor,
        up_OR: torch.Tensor,
        base: nn.Module,
        scaling: float,
        rate: float,
        seed: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, down_RI, up_OR)
        ctx.base, ctx.scaling, ctx.rate, ctx.seed = base, scaling, rate, seed
        return keep_whole(lambda: _forward(x, base, down_RI, up_OR, scaling, rate, seed), x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, down_RI, up_OR = ctx.saved_tensors
        grad_NO, input_NI = grads[0].flatten(0, -2), x.flatten(0, -2)
        grad_low_NR = (grad_NO @ up_OR).mul_(ctx.scaling)
        grad_NI = grad_low_NR @ down_RI if ctx.needs_input_grad[0] else None
        if ctx.rate:
            input_NI = input_NI.clone(memory_format=torch.contiguous_format)
            dropout.drop_in_place([input_NI] if grad_NI is None else [input_NI, grad_NI], ctx.rate, ctx.seed)
        grad_up_RO = (input_NI @ down_RI.T).mul_(ctx.scaling).T @ grad_NO  # twice as fast as its transpose on a CPU
        grad_down_RI = grad_low_NR.T @ input_NI
        del input_NI
        if grad_NI is not None:
            grad_NI = grad_NI.addmm_(grad_NO, bnb.matrix_of(ctx.base)).view(x.shape)
        return grad_NI, grad_down_RI, grad_up_RO.T, None, None, None, None


def _forward(  # noqa: PLR0913  # as above
    x: torch.Tensor,
    base: nn.Module,
    down_RI: torch.Tensor,
    up_OR: torch.Tensor,
    scaling: float,
    rate: float,
    seed: int,
) -> torch.Tensor:
    result: torch.Tensor = base(x)
    low_NR = _input(x, rate, seed) @ down_RI.T
    result.view(-1, result.shape[-1]).addmm_(low_NR, up_OR.T, alpha=scaling)
    return result


def _input(x: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """Return the adapter's input, [N, I]."""
    flat_NI = x.flatten(0, -2)
    return dropout.dropped(flat_NI, rate, seed) if rate else flat_NI


def make_lean(model: nn.Module) -> None:
    """Let PEFT's LoRA layers run `lora_linear` wherever it computes what their own forward would.

    The modules, their names and their files stay PEFT's. A layer with another variant (DoRA), over another kind of base
    or with several adapters keeps its forward, and so does one whose weights ZeRO-3 has partitioned: it gathers them
    for the modules that PEFT calls and not for a function.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        if _is_covered(module):
            vars(module)["forward"] = _LeanForward(module)


def make_plain(model: nn.Module) -> None:
    """Give the LoRA layers of a model PEFT's forward back."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _LeanForward):
            del vars(module)["forward"]


def _is_covered(module: nn.Module) -> bool:
    """Return whether a module is one plain LoRA adapter, without a bias, over a linear layer."""
    adapters = getattr(module, "lora_A", None)
    if not isinstance(adapters, nn.ModuleDict) or len(adapters) != 1 or getattr(module, "lora_variant", None):
        return False
    layer: Any = module
    ups = list(layer.lora_B.values())
    return bnb.is_linear(layer.base_layer) and all(type(up) is nn.Linear and up.bias is None for up in ups)


class _LeanForward:
    """The forward of one of PEFT's LoRA layers."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        (self._adapter,) = layer.lora_A

    def __call__(self, x: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        layer, adapter = self._layer, self._adapter
        steps_aside = (
            arguments or settings or layer.disable_adapters or layer.merged or layer.active_adapters != [adapter]
            or is_gathered_when_called(layer) or layer.lora_A[adapter].weight.dtype != x.dtype
        )  # fmt: skip
        if steps_aside:
            result: torch.Tensor = type(layer).forward(layer, x, *arguments, **settings)
            return result
        down, up, drop = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.lora_dropout[adapter]
        rate = drop.p if isinstance(drop, nn.Dropout) and layer.training else 0.0
        return lora_linear(x, layer.base_layer, down, up, layer.scaling[adapter], rate)
