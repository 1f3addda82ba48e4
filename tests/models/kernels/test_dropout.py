"""Dropout by seed: the rate is met, a seed draws the same mask again, and places are independent of one another."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftkit.models.kernels import dropout


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_of_dropped_elements_is_the_rate(rate, dtype):
    places = dropout.keep_mask(torch.empty(1000, 1000, dtype=dtype), rate, seed=1) == 0
    # Five standard deviations of a million draws, and the 2**-17 to which a rate is met.
    assert places.double().mean().item() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / 1e6) ** 0.5 + 2**-17)


def test_a_seed_draws_the_same_mask_and_another_seed_an_independent_one():
    tensor = torch.empty(999, 1001)
    first, again, other = (dropout.keep_mask(tensor, 0.1, seed) == 0 for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert (first & other).double().mean().item() == pytest.approx(0.01, abs=5 * (0.01 * 0.99 / 1e6) ** 0.5)


def test_neighbours_drop_independently():
    places = dropout.keep_mask(torch.empty(1_000_000), 0.3, seed=2) == 0
    for distance in (1, 2, 4, 64):
        both = places[distance:] & places[:-distance]
        assert both.double().mean().item() == pytest.approx(0.09, abs=5 * (0.09 * 0.91 / 1e6) ** 0.5)


def test_seeds_follow_the_generator_that_checkpointing_restores():
    tensor = torch.empty(3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = dropout.draw_seed(tensor), dropout.draw_seed(tensor)
    torch.set_rng_state(state)
    assert (dropout.draw_seed(tensor), dropout.draw_seed(tensor)) == first
    assert first[0] != first[1]


def test_tensors_without_values_get_masks_without_values():
    assert dropout.draw_seed(torch.empty(3, device="meta")) == 0
    assert dropout.keep_mask(torch.empty(3, device="meta"), 0.1, 0).is_meta


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_backward_drops_and_scales_what_the_forward_did(rate):
    x = torch.ones(200, 300, dtype=torch.float64, requires_grad=True)
    result = dropout.seeded_dropout(x, rate)
    result.backward(torch.full_like(x, 2.0))
    assert sorted(result.unique().tolist()) == [0.0, pytest.approx(1 / (1 - rate))]
    torch.testing.assert_close(x.grad, 2 * result)


def test_modules_keep_a_seed_in_training_and_do_nothing_in_evaluation():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    dropout.seed_dropouts(model)
    kept: list[torch.Size] = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    x = torch.randn(8, 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(x)
    assert (result == 0).any()
    assert kept == [(8, 4)]  # the input of the linear layer alone
    model.eval()
    torch.testing.assert_close(model(x), model[0](x))


def test_a_recomputed_layer_draws_the_same_mask():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3))
    dropout.seed_dropouts(layer)
    gradients = []
    for recomputes in (False, True):
        x = torch.ones(5, 16, requires_grad=True)
        torch.manual_seed(1)
        out = checkpoint(layer, x, use_reentrant=False) if recomputes else layer(x)
        out.square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
