"""A 4-bit linear layer computes what bitsandbytes' does, and its graph keeps no weight."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from ftkit.models import bnb
from ftkit.models.kernels.packed_linear import forget_weights

IN, OUT = 64, 96


def packed(dtype: torch.dtype, *, is_double: bool = True) -> nn.ModuleDict:
    torch.manual_seed(0)
    holder = nn.ModuleDict({"layer": nn.Linear(IN, OUT).to(dtype).requires_grad_(False)})
    bnb.quantize(holder, bnb.Packing("nf4", is_double, dtype), keep=())
    return holder


@pytest.mark.parametrize("is_double", [True, False])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_bitsandbytes_bit_by_bit(input_dtype, is_double):
    outcomes = []
    for forgets in (False, True):
        model = packed(torch.bfloat16, is_double=is_double)
        if forgets:
            forget_weights(model)
        torch.manual_seed(1)
        x = torch.randn(5, 7, IN).to(input_dtype).requires_grad_()
        result = model["layer"](x)
        result.sin().sum().backward()
        outcomes.append((result, x.grad))
    for theirs, ours in zip(*outcomes, strict=True):
        assert theirs.dtype == ours.dtype
        assert torch.equal(theirs, ours)


def test_a_weight_that_leaves_after_the_forward_is_freed_and_read_again_where_it_has_come_back():
    model = packed(torch.float32)
    x = torch.randn(3, IN, requires_grad=True)
    (right,) = torch.autograd.grad(model["layer"](x).sum(), x)
    forget_weights(model)
    weight = model["layer"].weight
    loss = model["layer"](x).sum()
    elsewhere, leaving = weight.data.clone(), StorageWeakRef(weight.untyped_storage())
    weight.data = torch.empty(0)
    assert leaving.expired()
    weight.data = elsewhere
    assert torch.equal(torch.autograd.grad(loss, x)[0], right)
