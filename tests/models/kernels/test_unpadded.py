"""An encoder whose layers run without padding, against the same over the padded form."""

import copy

import pytest
import torch
import transformers

from ftkit.config.recompute import Recompute
from ftkit.models import foreign
from ftkit.models.activations.recompute import set_recompute
from ftkit.models.kernels.first_place import pool_early
from ftkit.models.kernels.seeded_attention import NAME, attend
from ftkit.models.kernels.unpadded import Rows, is_unpadded, num_rows, unpad
from ftkit.models.structure.layers import transformer_layers
from tests.families import ENCODERS
from tests.models.kernels.test_first_place import KIN, classifier

DISTILBERT = ENCODERS["distilbert"] | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}

LENGTHS = [9, 1, 4, 7, 2]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}


def batch(lengths=LENGTHS, side="right"):
    torch.manual_seed(1)
    columns = torch.arange(max(lengths))
    mask = (columns if side == "right" else columns.flip(0)) < torch.tensor(lengths)[:, None]
    ids = torch.where(mask, torch.randint(5, 64, mask.shape), 1)
    return {"input_ids": ids, "attention_mask": mask.long()}


def made_unpadded(model, *, early=True):
    changed = copy.deepcopy(model)
    foreign.attend_by(changed, NAME, attend)
    if early:
        pool_early(changed)
    unpad(changed, NAME)
    return changed


def made(kind, dtype):
    return classifier(kind, dtype, **DISTILBERT) if kind == "distilbert" else classifier(kind, dtype)


def outcome(model, inputs):
    torch.manual_seed(2)
    logits = model(**inputs).logits
    (logits * torch.arange(1, 4)).sum().backward()
    return [logits, *(one.grad for one in model.parameters() if one.grad is not None)]


def assert_same(model, changed, inputs, tolerance):
    ours, theirs = outcome(changed, inputs), outcome(model, inputs)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [*KIN, "distilbert"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("early", [True, False])
def test_logits_and_gradients_equal_those_of_the_padded_form(kind, dtype, early):
    model = made(kind, dtype)
    changed = made_unpadded(model, early=early)
    assert is_unpadded(changed)
    assert_same(model, changed, batch(), TOLERANCES[dtype])


@pytest.mark.parametrize("lengths", [[5], [1], [4, 4, 4]])
def test_sequences_that_need_no_padding(lengths):
    model = classifier("bert", torch.float64)
    inputs = batch(lengths)
    assert_same(model, made_unpadded(model), inputs, 1e-10)
    model.zero_grad()
    del inputs["attention_mask"]
    assert_same(model, made_unpadded(model), inputs, 1e-10)


def test_padding_in_the_first_place_which_the_head_reads_keeps_the_padded_form():
    model = classifier("bert", torch.float64)
    assert_same(model, made_unpadded(model), batch(side="left"), 1e-10)


def test_layers_see_tokens_and_the_rows_that_fill_up():
    changed = made_unpadded(classifier("bert"))
    shapes = []
    for layer in transformer_layers(changed)[1]:
        layer.attention.self.key.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    changed(**batch())
    assert (sum(LENGTHS), num_rows(sum(LENGTHS))) == (23, 24)
    assert shapes == [(1, 24, 32)] * len(shapes)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_rows_that_fill_up_change_nothing(dtype):
    model = classifier("bert", dtype)
    inputs = batch([17, 3, 20, 19, 11])  # 70 tokens in 72 rows
    assert num_rows(70) == 72
    assert_same(model, made_unpadded(model), inputs, TOLERANCES[dtype])


def test_few_numbers_of_rows_come_up():
    found = {num_rows(tokens) for tokens in range(1024, 2049)}
    assert len(found) == 9
    assert all(tokens <= num_rows(tokens) <= tokens * 9 / 8 for tokens in range(1, 5000))


@pytest.mark.parametrize("recompute", [Recompute(layer=1), Recompute(cheap=1)])
def test_a_layer_that_recomputes_drops_the_same_and_gets_the_same_gradients(recompute):
    model = made_unpadded(classifier("bert", torch.float64))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    again = copy.deepcopy(model)
    set_recompute(again, recompute)
    assert_same(model, again, batch(), 1e-10)


def test_rows_go_there_and_back():
    mask = batch()["attention_mask"][:, None, None].bool()
    hidden = torch.randn(len(LENGTHS), max(LENGTHS), 6)
    rows = Rows.of(hidden, mask)
    assert rows.number == num_rows(sum(LENGTHS)) == 24
    packed = rows.packed(hidden)
    assert packed.shape == (1, rows.number, 6)
    torch.testing.assert_close(rows.padded(packed), hidden * mask[:, 0, 0, :, None])
    torch.testing.assert_close(packed[0, rows.firsts], hidden[:, 0])


def test_frozen_layers_below_others_keep_the_padded_form_that_the_trunk_cache_holds():
    model = classifier("bert")
    transformer_layers(model)[1][0].requires_grad_(False)
    assert not is_unpadded(made_unpadded(model))


def test_layers_that_are_all_frozen_run_without_padding_and_hand_on_the_padded_form():
    model = classifier("bert", torch.float64)
    model.bert.encoder.requires_grad_(False)
    changed = made_unpadded(model)
    assert is_unpadded(changed)
    assert_same(model, changed, batch(), 1e-10)
    hidden = changed.bert(**batch()).last_hidden_state
    assert hidden.shape[:2] == (len(LENGTHS), max(LENGTHS))


def test_another_attention_keeps_the_padded_form():
    model = classifier("bert")
    unpad(model, NAME)
    assert not is_unpadded(model)
    assert model(**batch()).logits.shape == (len(LENGTHS), 3)


@pytest.mark.parametrize("kind", ["modernbert", "xlnet"])
def test_other_encoders_are_left_as_they_are(kind):
    model = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.for_model(kind, vocab_size=64, pad_token_id=1, **ENCODERS[kind])
    )
    unpad(model, NAME)
    assert not any("forward" in vars(module) for module in model.modules())
