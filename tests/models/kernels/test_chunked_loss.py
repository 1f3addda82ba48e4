"""Language models that return their loss without logits, against the same models with them."""

import numpy as np
import pytest
import torch
import transformers

from ftkit.data import batching
from ftkit.machine.process import ProcessContext, joined
from ftkit.models.build import trainable_parameters
from ftkit.models.kernels.chunked_loss import is_chunked
from ftkit.models.methods.lora import unwrapped
from ftkit.models.objective import TokenCrossEntropy
from ftkit.training.checks.loss_form import settle_loss
from tests.families import DECODERS, GENERATORS, architecture
from tests.helpers import PADDING, build, ragged_split, save_tiny_model, take_steps

CAPPED = {"final_logit_softcapping": 2.0, "logit_scale": 0.5, "logits_scaling": 3.0}
"""Far from 1, so that a model's tail shows."""


def engine_of(family, folder):
    torch.manual_seed(7)
    config = architecture(family)
    for name, value in CAPPED.items():
        if hasattr(config, name) and family != "mpt":
            setattr(config, name, value)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(4)  # logits that differ
    model.save_pretrained(folder)
    return build(["task=causal-lm", "method.name=full"], folder, torch.float32, ProcessContext())[1]


def outcome(engine):
    """The loss of one ragged micro-batch and its gradients."""
    split = ragged_split("causal-lm", num_samples=5)
    engine.model.zero_grad()
    loss = engine.loss(batching.collate(split, np.arange(5), PADDING, engine.device))
    loss.backward()
    found = {name: one.grad for name, one in trainable_parameters(engine.model).items() if one.grad is not None}
    return loss.detach(), {name: gradient.clone() for name, gradient in found.items()}


@pytest.mark.parametrize("family", [*DECODERS, *GENERATORS])
def test_loss_and_gradients_are_those_of_whole_logits_in_every_family(family, tmp_path):
    engine = engine_of(family, tmp_path)
    assert engine.objective == TokenCrossEntropy(in_chunks=True)
    loss, gradients = outcome(engine)
    engine.objective = TokenCrossEntropy()
    whole, expected = outcome(engine)
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        # fp32: sums in another order; gradients of a random model reach 1e2.
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3, msg=name)


def test_a_model_whose_loss_differs_keeps_whole_logits_and_says_so(tmp_path):
    engine = engine_of("gemma2", tmp_path)
    notes: list[str] = []
    split = ragged_split("causal-lm", num_samples=5)
    settle_loss(engine, split, PADDING, notes.append)
    assert engine.objective == TokenCrossEntropy(in_chunks=True)
    assert not notes
    engine.model.config.final_logit_softcapping = 1.0  # not what was there when the model was changed
    settle_loss(engine, split, PADDING, notes.append)
    assert engine.objective == TokenCrossEntropy()
    assert "whole logits" in notes[0]


@pytest.mark.parametrize(("settings", "is_covered"), [((), True), (("method.targets=[lm_head]",), False)])
def test_an_adapted_head_is_left_as_it_is(settings, is_covered, tmp_path):
    model = save_tiny_model(tmp_path, "llama")
    engine = build(["task=causal-lm", "method.name=lora", *settings], model, torch.float32, ProcessContext())[1]
    assert is_chunked(unwrapped(engine.model)) == is_covered
    assert engine.objective == TokenCrossEntropy(is_covered)


@pytest.fixture(scope="module")
def alone():
    with joined(ProcessContext()):
        yield ProcessContext()


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # a tied head, and one of its own
@pytest.mark.parametrize("method", ["lora", "full"])
def test_under_zero_3_a_lean_step_is_the_plain_one(family, method, tmp_path, alone):
    model, outcomes = save_tiny_model(tmp_path, family), []
    for lean in ("true", "false"):
        settings = ["task=causal-lm", f"method.name={method}", f"model.lean={lean}", "engine.zero_stage=3"]
        config, engine = build(settings, model, torch.float32, alone)
        assert engine.objective == TokenCrossEntropy(lean == "true")
        outcomes.append(take_steps(config, engine, ragged_split("causal-lm"), num_steps=2))
    # fp32: sums in another order.
    assert outcomes[0].losses == pytest.approx(outcomes[1].losses, rel=1e-5)
    assert outcomes[0].norms == pytest.approx(outcomes[1].norms, rel=1e-4)
