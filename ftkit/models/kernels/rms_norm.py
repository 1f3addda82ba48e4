"""The norm of Llama's kin on a CPU as one autograd function, which keeps its input and the inverse root of each row.

transformers' norm keeps two copies of its input in fp32 and one in the compute dtype, and goes through it some thirty
times. Here the forward computes the same, and the backward makes again from the input what it needs of the rest.

Dimension letters: N token, D model.
"""

from typing import Any

import torch
from torch import nn

from ftkit.models.kernels import foreign, on_cpu


def lean_norms(model: nn.Module) -> None:
    """Let the norms of a model run `rms_norm` where they compute what Llama's does.

    Args:
        model: a transformers model; changed in place.
    """
    for module in model.modules():
        if foreign.is_llama_norm(module):
            vars(module)["forward"] = _LeanForward(module)


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return `weight * x / sqrt(mean(x ** 2) + epsilon)`, made in fp32 but for the weight, as transformers makes it.

    Args:
        x: [..., D].
        weight_D: multiplies in the dtype of `x`.
        epsilon: is added to the mean of the squares.
    """
    result: torch.Tensor = _RmsNorm.apply(x, weight_D, epsilon)  # type: ignore[no-untyped-call]  # torch types `apply` for no function
    return result


class _RmsNorm(torch.autograd.Function):
    """Keeps the input, the weight and the inverse roots."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        normed = x.to(wide, copy=True)
        inverse = torch.linalg.vector_norm(normed, dim=-1, keepdim=True)
        inverse.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return normed.mul_(inverse).to(x.dtype).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight_D, inverse = ctx.saved_tensors
        (grad,) = grads
        normed = x.to(inverse.dtype, copy=True).mul_(inverse)
        grad_weight_D = None
        if ctx.needs_input_grad[1]:
            grad_weight_D = (grad * normed).flatten(0, -2).sum(0).to(weight_D.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight_D, None
        grad_normed = (grad * weight_D).to(inverse.dtype)
        shared = (grad_normed * normed).mean(-1, keepdim=True)
        return grad_normed.addcmul_(normed, shared, value=-1).mul_(inverse).to(x.dtype), grad_weight_D, None


class _LeanForward:
    """The forward of a norm."""

    def __init__(self, norm: Any) -> None:
        self._norm = norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        norm = self._norm
        if on_cpu.is_on_cpu(x) and norm.weight.dtype == x.dtype:
            return rms_norm(x, norm.weight, norm.variance_epsilon)
        result: torch.Tensor = type(norm).forward(norm, x)
        return result
