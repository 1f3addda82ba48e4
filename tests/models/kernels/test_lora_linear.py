"""A linear layer with its adapter as one function, against PEFT's own modules."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ftkit.models import bnb
from ftkit.models.kernels import dropout
from ftkit.models.kernels.lora_linear import lora_linear

IN, OUT, RANK = 64, 96, 4


def base_layer(kind: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layer = Conv1D(OUT, IN) if kind == "Conv1D" else nn.Linear(IN, OUT)
    layer = layer.to(dtype).requires_grad_(False)
    if kind == "4-bit":
        holder = nn.ModuleDict({"layer": layer})
        bnb.quantize(holder, bnb.Packing("nf4", True, dtype), keep=())
        return holder["layer"]
    return layer


def adapter(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    down, up = (torch.randn(*shape, dtype=dtype).mul_(0.2) for shape in ((RANK, IN), (OUT, RANK)))
    return down.requires_grad_(), up.requires_grad_()


def plain(x, base, down, up, scaling, rate, seed):
    """What PEFT computes, with the mask of a seed."""
    kept = dropout.dropped(torch.ones_like(x), rate, seed)
    return base(x) + nn.functional.linear(nn.functional.linear(x * kept / (1 - rate), down), up) * scaling


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_gradients_are_those_of_finite_differences_in_fp64(kind, rate):
    base = base_layer(kind, torch.float64)
    x = torch.randn(2, 3, IN, dtype=torch.float64, requires_grad=True)

    def run(x, down, up):
        torch.manual_seed(3)  # the same mask at each evaluation
        return lora_linear(x, base, down, up, 1.5, rate)

    assert torch.autograd.gradcheck(run, (x, *adapter(torch.float64)), fast_mode=True)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "4-bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_values_and_gradients_equal_those_of_separate_modules(kind, dtype, rate):
    base, outcomes = base_layer(kind, dtype), []
    for is_plain in (False, True):
        down, up = adapter(dtype)
        torch.manual_seed(2)
        x = torch.randn(5, 7, IN).to(dtype).requires_grad_()
        torch.manual_seed(3)
        seed = dropout.draw_seed(x) if rate and is_plain else 0
        result = plain(x, base, down, up, 2.0, rate, seed) if is_plain else lora_linear(x, base, down, up, 2.0, rate)
        result.square().mean().backward()
        outcomes.append((result, x.grad, down.grad, up.grad))
    # bf16 has 8 bits; the plain form rounds twice more on its way.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_an_input_that_needs_no_gradient_gets_none():
    down, up = adapter(torch.float32)
    x = torch.randn(3, IN)
    lora_linear(x, base_layer("Linear", torch.float32), down, up, 1.0).sum().backward()
    assert x.grad is None
    assert down.grad is not None


def test_only_the_input_and_the_small_matrices_are_kept_for_the_backward():
    kept: list[torch.Size] = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    down, up = adapter(torch.float32)
    x = torch.randn(50, IN, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lora_linear(x, base_layer("Linear", torch.float32), down, up, 1.0, 0.1)
    assert kept == [(50, IN), (RANK, IN), (OUT, RANK)]
