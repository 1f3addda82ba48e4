"""Attention whose backward is made of whole products, against torch's in fp64."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config

from ftkit.models.kernels import on_cpu, short_attention
from ftkit.models.kernels.scores import repeated
from ftkit.models.kernels.short_attention import NAME, attend, shorten

BATCH, HEADS, WIDTH = 3, 4, 8
SETTINGS = {"scaling": 0.3, "dropout": 0.0}


def padded(length):
    """Of three sequences of which one is whole and one a single token."""
    return torch.arange(length) < torch.tensor([length, max(1, length - 2), 1])[:, None, None, None]


MASKS = {
    "causal": lambda _: None,
    "padded": padded,
    "both": lambda length: padded(length) & torch.ones(length, length, dtype=torch.bool).tril(),
    "added": lambda length: torch.zeros(BATCH, 1, 1, length).masked_fill(~padded(length), -1e4),
}


def inputs(length, dtype, heads_of_key=HEADS):
    torch.manual_seed(0)
    return [
        torch.randn(BATCH, heads, length, WIDTH).to(dtype).requires_grad_()
        for heads in (HEADS, heads_of_key, heads_of_key)
    ]


def exact(query, key, value, mask):
    """Return torch's result in fp64, and the gradients of its inputs."""
    wide = [one.detach().double().requires_grad_() for one in (query, key, value)]
    seen_key, seen_value = (repeated(one, HEADS // one.shape[1]) for one in wide[1:])
    mask = mask.double() if mask is not None and mask.is_floating_point() else mask
    result = functional.scaled_dot_product_attention(
        wide[0], seen_key, seen_value, attn_mask=mask, is_causal=mask is None, scale=0.3
    )
    result.square().sum().backward()
    return [result.transpose(1, 2), *(one.grad for one in wide)]


def names_of_nodes(result):
    """Of the graph, along the first input of each."""
    node = result.grad_fn
    while node is not None:
        yield node.name()
        node = node.next_functions[0][0] if node.next_functions else None


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads_of_key", [HEADS, 2, 1])
@pytest.mark.parametrize(("length", "at_once"), [(1, 2**22), (9, 2**22), (40, 2 * HEADS * 40 * 40)])
def test_values_and_gradients_are_torchs_in_fp64_up_to_rounding(
    mask, dtype, heads_of_key, length, at_once, monkeypatch
):
    monkeypatch.setattr(short_attention, "_SCORES_AT_ONCE", at_once)  # at 40 tokens two sequences, and the third
    query, key, value = given = inputs(length, dtype, heads_of_key)
    made = MASKS[mask](length)
    made = made.to(dtype) if made is not None and made.is_floating_point() else made
    result, _ = attend(nn.Module(), query, key, value, made, **SETTINGS)
    assert "_AttentionBackward" in names_of_nodes(result)
    result.square().sum().backward()
    for ours, theirs in zip([result, *(one.grad for one in given)], exact(query, key, value, made), strict=True):
        assert ours.dtype == dtype
        # bf16 has 8 bits; a sum is as exact as its largest terms.
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-2, atol=2e-2 * theirs.abs().max().item() + 1e-6)


def test_query_key_and_value_alone_are_kept_and_keys_are_not_repeated():
    kept: list[torch.Size] = []

    def keep(tensor):
        kept.append(tensor.shape)
        return tensor

    query, key, value = inputs(9, torch.bfloat16, heads_of_key=2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(nn.Module(), query, key, value, None, **SETTINGS)
    assert kept == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize("case", ["fp32", "long", "without a gradient", "dropout", "a GPU's plan"])
def test_torchs_own_backward_stays_where_it_is_the_quicker_one(case, monkeypatch):
    monkeypatch.setattr(short_attention, "_LONGEST", 9)
    query, key, value = inputs(10 if case == "long" else 9, torch.float32 if case == "fp32" else torch.bfloat16)
    if case == "without a gradient":
        query, key, value = (one.detach() for one in (query, key, value))
    settings = SETTINGS | {"dropout": 0.1 if case == "dropout" else 0.0}
    monkeypatch.setattr(short_attention._Attention, "apply", lambda *_: pytest.fail("it was taken"))
    with on_cpu.judged_by(lambda _: case != "a GPU's plan"):
        attend(nn.Module(), query, key, value, None, **settings)


def test_a_model_without_dropout_in_its_attention_attends_so_and_saves_no_word_of_it(tmp_path):
    config = GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=64, attn_pdrop=0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.arange(22).view(2, 11)
    plain = torch.autograd.grad(model(ids, labels=ids).loss, model.transformer.wpe.weight)[0]
    shorten(model)
    assert model.config._attn_implementation == NAME
    ours = torch.autograd.grad(model(ids, labels=ids).loss, model.transformer.wpe.weight)[0]
    # Both round to 8 bits at other places.
    torch.testing.assert_close(ours, plain, rtol=0, atol=2e-2 * plain.abs().max().item())
    model.config.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
