"""A classifier whose last layer computes the first place alone, against the same with its whole last layer."""

import copy

import pytest
import torch
import transformers

from ftkit.models import foreign
from ftkit.models.kernels.first_place import pool_early
from ftkit.models.structure.layers import transformer_layers
from tests.families import ENCODERS

KIN = ("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta")


def classifier(kind, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    size = ENCODERS["roberta"] | {"pad_token_id": 1, "vocab_size": 64, "num_labels": 3} | settings
    config = transformers.AutoConfig.for_model(kind, **size)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        setattr(config, name, 0.0)
    return transformers.AutoModelForSequenceClassification.from_config(config).to(dtype).train()


def batch():
    torch.manual_seed(1)
    mask = (torch.arange(9) < torch.tensor([9, 4, 7])[:, None]).long()
    ids = torch.randint(5, 64, (3, 9)) * mask + (1 - mask)
    return {"input_ids": ids, "attention_mask": mask}


def outcome(model):
    logits = model(**batch()).logits
    logits.square().sum().backward()
    return [logits, *(one.grad for one in model.parameters() if one.grad is not None)]


def is_early(model):
    return "forward" in vars(transformer_layers(model)[1][-1].attention)


@pytest.mark.parametrize("kind", KIN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_and_gradients_equal_those_of_the_whole_layer(kind, dtype):
    whole = classifier(kind, dtype)
    early = copy.deepcopy(whole)
    pool_early(early)
    assert is_early(early)
    # Sums over other numbers of rows round in another order: 53, 24 and 8 bits.
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    ours, theirs = outcome(early), outcome(whole)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_the_last_layer_keeps_one_place_of_what_follows_the_query():
    model = classifier("bert")
    pool_early(model)
    shapes = []
    model.bert.encoder.layer[-1].output.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    model(**batch())
    assert shapes == [(3, 1, 32)]


def test_sequences_of_one_length_need_no_mask():
    whole = classifier("bert")
    early = copy.deepcopy(whole)
    pool_early(early)
    ids = batch()["input_ids"][:1]
    torch.testing.assert_close(early(ids).logits, whole(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["distilbert", "modernbert", "xlnet"])
def test_other_encoders_are_left_as_they_are(kind):
    model = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.for_model(kind, vocab_size=64, pad_token_id=1, **ENCODERS[kind])
    )
    pool_early(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_frozen_last_layer_is_left_as_it_is():
    model = classifier("bert")
    model.bert.requires_grad_(False)
    pool_early(model)
    assert not is_early(model)


def test_attention_written_out_is_left_to_the_layer_itself():
    model = classifier("bert")
    model.set_attn_implementation("eager")
    pool_early(model)
    assert is_early(model)
    whole = copy.deepcopy(model)
    del vars(transformer_layers(whole)[1][-1].attention)["forward"]
    assert torch.equal(model(**batch()).logits, whole(**batch()).logits)


def test_the_kin_are_those_that_the_table_names():
    assert {kind.replace("-", "_") for kind in KIN} == set(foreign.POOLED_BY_FIRST.values())
