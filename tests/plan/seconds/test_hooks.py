"""Python around a model's modules is timed where it runs, and changes nothing of what the model computes."""

import torch
from torch import nn

from ftkit.plan.seconds.hooks import Hooks, hook_seconds


def test_a_hook_before_and_after_each_module_is_timed_and_leaves_outputs_and_gradients_as_they_were():
    model, hooks = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), Hooks()
    given = torch.ones(2, 3, requires_grad=True)
    expected = model(given)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), given)
    with hooks.around(model):
        output = model(given)
        (gradient,) = torch.autograd.grad(output.sum(), given)
    assert torch.equal(output, expected)
    assert torch.equal(gradient, expected_gradient)
    assert len(hooks.seconds) == 2 * 3
    assert min(hooks.seconds) > 0
    model(given)
    assert len(hooks.seconds) == 2 * 3


def test_a_hook_hands_on_what_is_no_tensor():
    class Two(nn.Module):
        def forward(self, tensor, name):
            return {"it": tensor}, name

    with Hooks().around(two := Two()):
        made, name = two(torch.ones(1), "name")
    assert name == "name"
    assert made["it"].item() == 1


def test_a_hook_costs_this_cpu_some_microseconds():
    # 15 on a core of a Xeon; a slow or busy one has a few times that.
    assert 1e-6 < hook_seconds() < 1e-3
