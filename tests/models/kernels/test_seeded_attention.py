"""Attention that drops weights by seed, against plain math with the mask of that seed."""

import pytest
import torch
from torch import nn

from ftkit.config.tree import RunConfig
from ftkit.models.build import build_bare_model
from ftkit.models.kernels import dropout
from ftkit.models.kernels.seeded_attention import NAME, attend, keep_scores, seed_attention, seeded_attention
from tests.plan import models

SHAPE = (2, 3, 6, 8)
PADDED = torch.arange(6) < torch.tensor([6, 4])[:, None, None, None]
MASKS = {
    "none": None,
    "bool": PADDED,
    "causal": torch.ones(6, 6, dtype=torch.bool).tril(),
    "added": torch.zeros(2, 1, 1, 6).masked_fill(~PADDED, -1e4),
}


def inputs(dtype):
    torch.manual_seed(0)
    return [torch.randn(SHAPE).to(dtype).requires_grad_() for _ in range(3)]


def plain(query, key, value, mask, scaling, rate, seed):
    scores = query @ key.mT * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)
    return weights * dropout.dropped(torch.ones_like(weights), rate, seed) / (1 - rate) @ value


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.25, 0.4])  # by gaps, and by a mask
def test_values_and_gradients_equal_those_of_plain_math(mask, dtype, rate):
    added = MASKS[mask].to(dtype) if mask == "added" else MASKS[mask]
    outcomes = []
    for is_plain in (False, True):
        query, key, value = inputs(dtype)
        torch.manual_seed(3)
        seed = dropout.draw_seed(query) if is_plain else 0
        given = (query, key, value, added, 0.3, rate)
        result = plain(*given, seed) if is_plain else seeded_attention(*given)
        result.square().sum().backward()
        outcomes.append([result, query.grad, key.grad, value.grad])
    # bf16 has 8 bits, and the two forms round at other places; a sum is as exact as its largest terms.
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 30, 32, 48, 100])
def test_rows_of_any_length_in_half_precision_equal_fp32_to_its_rounding(length, dtype):
    torch.manual_seed(0)
    given = [torch.randn(2, 2, length, 8).to(dtype) for _ in range(4)]
    outcomes = []
    for kind in (dtype, torch.float32):
        torch.manual_seed(3)
        query, key, value, grad = (one.to(kind, copy=True).requires_grad_() for one in given)
        result = seeded_attention(query, key, value, torch.arange(length) < max(1, length - 2), 0.3, 0.25)
        result.backward(grad)
        assert {one.dtype for one in (result, query.grad, key.grad, value.grad)} == {kind}
        outcomes.append([one.float() for one in (result, query.grad, key.grad, value.grad)])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * theirs.abs().max().item() + 1e-6)


def test_what_comes_with_tokens_before_heads_gives_the_same():
    outcomes = []
    for is_turned in (False, True):
        inputs_BHTW = inputs(torch.float32)
        turned = [one.transpose(1, 2).contiguous().transpose(1, 2) for one in inputs_BHTW]
        query, key, value = turned if is_turned else inputs_BHTW
        torch.manual_seed(3)
        result = seeded_attention(query, key, value, MASKS["bool"], 0.3, 0.25)
        result.square().sum().backward()
        outcomes.append([result, *(one.grad for one in inputs_BHTW)])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_finite_differences_in_fp64():
    def run(query, key, value):
        torch.manual_seed(3)  # the same mask at each evaluation
        return seeded_attention(query, key, value, MASKS["causal"], 0.3, 0.25)

    assert torch.autograd.gradcheck(run, inputs(torch.float64), fast_mode=True)


def test_query_key_and_value_alone_are_kept_for_the_backward():
    kept: list[torch.Size] = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    query, key, value = inputs(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        seeded_attention(query, key, value, None, 0.3, 0.25)
    assert kept == [SHAPE] * 3


@pytest.mark.parametrize("is_causal", [True, False])
def test_without_dropout_it_is_torchs_attention_and_with_a_little_nearly_so(is_causal):
    query, key, value = (one.detach() for one in inputs(torch.float32))
    settings = {"scaling": 0.3, "is_causal": is_causal}
    exact, _ = attend(nn.Module(), query, key, value, None, dropout=0.0, **settings)
    # Of 108 weights, these draws drop none.
    nearly, _ = attend(nn.Module(), query, key, value, None, dropout=1e-6, **settings)
    torch.testing.assert_close(nearly, exact, rtol=1e-5, atol=1e-5)


def test_a_model_that_drops_weights_attends_by_seed_and_one_that_does_not_is_left(tmp_path):
    config = RunConfig.model_validate({"model": {"name": "bert"}})
    for rate, name in ((0.1, NAME), (0.0, "sdpa")):
        architecture = models.architecture("bert")
        architecture.attention_probs_dropout_prob = rate
        model = build_bare_model(config, architecture, torch.float32)
        seed_attention(model)
        assert model.config._attn_implementation == name
        keep_scores(model)
        assert model.config._attn_implementation == "sdpa"
