"""A layer that keeps its products gives the results and the gradients of one that keeps everything."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils import checkpoint

from ftkit.models.kernels.foreign import DispatchMode
from ftkit.models.kernels.kept_products import contexts, keep_whole

BASE, DOWN, UP = torch.randn(64, 64), torch.randn(64, 4), torch.randn(4, 64)


class Counted(DispatchMode):
    """Counts the calls of operators by their names."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def as_peft(x):
    """A layer with an adapter that is added in place, and an activation behind it."""
    out = x @ BASE
    out += (x @ DOWN) @ UP
    return functional.gelu(out) @ BASE


def read_before(x):
    """A product that is read, then changed, then read again: it cannot be kept."""
    out = x @ BASE
    early = out * 2
    out.add_(0.5)
    return (functional.gelu(early) * functional.gelu(out)) @ BASE


def through_a_view(x):
    out = x @ BASE
    out.view(-1).mul_(0.5)
    return functional.gelu(out).square() @ BASE


def attention(x):
    query, key, value = (functional.gelu(part).view(2, 4, 4, 16) for part in (x @ BASE, x @ BASE.T, x @ BASE))
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True).reshape(x.shape).sin() @ BASE


def dropped(x):
    """Random numbers on both sides of what is kept."""
    hidden = functional.dropout(x, 0.3) @ BASE
    return functional.dropout(functional.gelu(hidden), 0.3) @ BASE


def whole(x):
    return functional.gelu(Whole.apply(x.sin())).square() @ BASE


class Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return keep_whole(lambda: (x @ BASE).sin_().addmm_(x @ DOWN, UP), x)

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        return (grads[0] * (x @ BASE).cos()) @ BASE.T + grads[0] @ (DOWN @ UP).T


def read_by_a_whole(x):
    """As `read_before`, where a function that is kept whole has read, and its own result cannot be kept either."""
    out = x @ BASE
    half = Halved.apply(out)
    early = half * 2
    half.add_(0.5)
    out.add_(0.5)
    return (functional.gelu(early) * functional.gelu(half) * functional.gelu(out)) @ BASE


class Halved(torch.autograd.Function):
    """Needs nothing of what it has read for its backward."""

    @staticmethod
    def forward(ctx, x):
        return keep_whole(lambda: x * 0.5, x)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * 0.5


FUNCTIONS = [as_peft, read_before, through_a_view, attention, dropped, whole, read_by_a_whole]


def results(function, **settings):
    """Return result and gradient, with what the backward called."""
    torch.manual_seed(3)
    x = torch.randn(8, 64, requires_grad=True)
    out = checkpoint.checkpoint(function, x, use_reentrant=False, **settings) if settings else function(x)
    with Counted() as counted:
        out.square().sum().backward()
    return out.detach(), x.grad, counted.calls


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_results_and_gradients_are_bit_equal_to_those_of_a_layer_that_keeps_everything(function):
    plain, kept = results(function), results(function, context_fn=contexts)

    assert torch.equal(plain[0], kept[0])
    assert torch.equal(plain[1], kept[1])


@pytest.mark.parametrize(
    ("function", "operator", "more"),
    [(as_peft, "mm", 1), (as_peft, "gelu", 1), (as_peft, "add_", 0), (through_a_view, "mul_", 0), (attention, "mm", 0),
     (attention, "_scaled_dot_product_flash_attention_for_cpu", 0), (attention, "gelu", 3), (whole, "mm", 0),
     (whole, "addmm_", 0)],
)  # fmt: skip
def test_products_and_attention_are_not_computed_again_and_the_rest_is(function, operator, more):
    """Of a layer with an adapter, the product of rank 4 alone is."""
    plain, kept = results(function)[2], results(function, context_fn=contexts)[2]

    assert kept.get(operator, 0) - plain.get(operator, 0) == more


def test_a_kept_result_that_changes_after_the_layer_is_not_used():
    x = torch.randn(8, 64, requires_grad=True)
    held = []

    def layer(hidden):
        held.append(hidden @ BASE)
        return functional.gelu(held[-1]).square()

    out = checkpoint.checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
    with torch.no_grad():
        held[0].mul_(2)
    with pytest.raises(AssertionError, match="changed in place after it"):
        out.sum().backward()


def test_a_layer_keeps_its_products_and_nothing_else_between_forward_and_backward():
    class Net(nn.Module):
        def forward(self, x):
            return functional.gelu(functional.gelu(x @ BASE).sin() @ BASE).sin()

    live = []

    def keep(tensor):
        live.append(tensor)
        return tensor

    x = torch.randn(8, 64, requires_grad=True)
    pair: Any = contexts()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = checkpoint.checkpoint(Net(), x, use_reentrant=False, context_fn=lambda: pair)

    assert [one.result.value.shape for one in pair[0]._kept] == [(8, 64), (8, 64)]
    assert [tensor is x for tensor in live] == [True]
    out.sum().backward()
    assert not pair[1]._kept
