"""Dropout by seed: the rate is met, a seed draws the same mask again, and places are independent of one another."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftkit.models.kernels import dropout


def mask(*shape, rate, seed, dtype=torch.float32):
    """What a seed keeps, drawn as it is for tensors on a CPU: by gaps at low rates."""
    return dropout.dropped(torch.ones(shape, dtype=dtype), rate, seed)


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.05, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_of_dropped_elements_is_the_rate(rate, dtype):
    places = mask(1000, 1000, rate=rate, seed=1, dtype=dtype) == 0
    # Five standard deviations of a million draws, and the 2**-17 to which a rate is met.
    assert places.double().mean().item() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / 1e6) ** 0.5 + 2**-17)


@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.1, 0.25])
def test_gaps_between_dropped_elements_have_the_rate_and_the_spread_of_independent_draws(rate):
    gaps = dropout._gaps(rate)
    assert 1 / gaps.mean() == pytest.approx(rate, abs=2**-17)
    # A geometric number has the variance (1 - rate) / rate**2; the longest gaps that are cut off hold 0.2 % of it.
    assert gaps.var() == pytest.approx((1 - rate) / rate**2, rel=5e-3)


def test_the_last_elements_are_dropped_as_often_as_the_first():
    counts = sum((mask(40, rate=0.1, seed=seed) == 0).double() for seed in range(4000))
    # Five standard deviations of 4,000 draws.
    torch.testing.assert_close(counts / 4000, torch.full_like(counts, 0.1), rtol=0, atol=5 * (0.09 / 4000) ** 0.5)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0, 2), (1, 1, 5)])
def test_small_and_empty_tensors_are_dropped_from_too(shape):
    assert mask(*shape, rate=0.1, seed=0).shape == shape


def test_tensors_that_are_dropped_together_lose_the_same_places():
    first, second = torch.ones(30, 40), torch.ones(1200)
    dropout.drop_in_place([first, second], 0.1, 7)
    assert torch.equal(first.flatten(), second)
    assert torch.equal(second, mask(1200, rate=0.1, seed=7))


@pytest.mark.parametrize("rate", [0.1, 0.3])  # by gaps, and by a mask
def test_a_seed_draws_the_same_mask_and_another_seed_an_independent_one(rate):
    first, again, other = (mask(999, 1001, rate=rate, seed=seed) == 0 for seed in (5, 5, 6))
    assert torch.equal(first, again)
    both = rate**2
    assert (first & other).double().mean().item() == pytest.approx(both, abs=5 * (both * (1 - both) / 1e6) ** 0.5)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_neighbours_drop_independently(rate):
    places = mask(1_000_000, rate=rate, seed=2) == 0
    expected = rate**2
    for distance in (1, 2, 4, 64):
        both = (places[distance:] & places[:-distance]).double().mean().item()
        assert both == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 1e6) ** 0.5)


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
