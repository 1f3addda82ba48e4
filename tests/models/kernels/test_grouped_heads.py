"""Heads that share key and value are repeated where torch has no kernel for groups; nothing else changes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig

from ftkit.models.kernels import grouped_heads
from ftkit.models.kernels.grouped_heads import NAME, make_grouped

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
GROUPED = LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)


def built(config, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, **settings)


def loss_and_gradients(model, ids, mask=None):
    loss = model(ids, attention_mask=mask, labels=ids).loss
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("is_ragged", [False, True])
def test_repeated_heads_give_the_losses_and_gradients_of_groups(is_ragged):
    ids = torch.arange(22).view(2, 11)
    mask = torch.ones_like(ids)
    mask[0, 8:] = 0
    plain, model = built(GROUPED), built(GROUPED)
    make_grouped(model)
    with grouped_heads.judged_by(lambda *_: False):
        got = loss_and_gradients(model, ids, mask if is_ragged else None)
    # In fp64 a sum of some hundred products of about 1 differs by its order in the fourteenth digit.
    for one, other in zip(got, loss_and_gradients(plain, ids, mask if is_ragged else None), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_key_and_value_are_repeated_only_where_torch_has_no_kernel_for_groups(monkeypatch):
    heads = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def noted(query, key, value, **settings):
        heads.append((query.shape[1], key.shape[1], value.shape[1]))
        return attention(query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    model = built(GROUPED)
    make_grouped(model)
    ids = torch.zeros(1, 5, dtype=torch.int64)
    model(ids)
    assert heads == 2 * [(4, 2, 2)]
    with grouped_heads.judged_by(lambda *_: False):
        model(ids)
    assert heads[2:] == 2 * [(4, 4, 4)]


def test_models_without_groups_or_with_another_attention_keep_theirs():
    own = GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=64)
    for model in (
        built(own),
        built(LlamaConfig(**SIZES, num_attention_heads=4)),
        built(GROUPED, attn_implementation="eager"),
    ):
        before = model.config._attn_implementation
        make_grouped(model)
        assert model.config._attn_implementation == before != NAME


def test_windows_keep_their_masks():
    config = Gemma3TextConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=3)
    ids = torch.arange(12).view(1, 12)
    plain, model = built(config), built(config)
    make_grouped(model)
    assert model.config._attn_implementation == NAME
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=0, atol=0)


def test_a_saved_configuration_names_no_attention(tmp_path):
    model = built(GROUPED)
    make_grouped(model)
    model.config.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
