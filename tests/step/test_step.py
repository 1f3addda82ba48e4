"""However a global batch is cut, a step is the same; and it is the one that one uncut batch would take."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from ftkit.config.tree import BatchConfig
from ftkit.data import batching
from ftkit.machine.process import ProcessContext
from ftkit.models import build as model
from ftkit.step.step import train_step
from tests.helpers import FAMILIES, LABELS, PADDING, build, ragged_split, save_tiny_model, take_steps

ALONE = ProcessContext()
CUTS = (
    "batch.micro_batch_size=1",
    "batch.micro_batch_size=3",
    "batch.micro_batch_tokens=40",
    "batch.micro_batch_tokens=999",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save_tiny_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def run(folder, settings, task, dtype=torch.float32, **arguments):
    config, engine = build([f"task={task}", "batch.global_batch_size=8", *settings], folder, dtype, ALONE)
    return take_steps(config, engine, ragged_split(task), **arguments)


@pytest.mark.parametrize("task", ["sequence-classification", "causal-lm"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_step_does_not_depend_on_the_cut(family, task, folders):
    found = [run(folders[family], [cut, "method.name=full"], task) for cut in CUTS]
    for one in found[1:]:
        # fp32 sums in another order differ in the last of 24 bits; Adam's roots and three steps spread that.
        np.testing.assert_allclose(one.losses, found[0].losses, rtol=2e-6)
        np.testing.assert_allclose(one.norms, found[0].norms, rtol=2e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_step_of_an_encoder_does_not_depend_on_the_cut(family, folders):
    found = [run(folders[family], [cut, "method.name=lora"], "sequence-classification") for cut in CUTS]
    for one in found[1:]:
        np.testing.assert_allclose(one.losses, found[0].losses, rtol=2e-6)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_activations_changes_no_loss_and_no_norm(family, share, folders):
    task = "sequence-classification"
    plain = run(folders[family], [CUTS[2]], task)
    checkpointed = run(folders[family], [CUTS[2], f"model.gradient_checkpointing={share}"], task)
    assert checkpointed.losses == plain.losses
    assert checkpointed.norms == plain.norms
    layers = [one for one in checkpointed.engine.model.modules() if getattr(one, "gradient_checkpointing", False)]
    assert len([one for one in layers if hasattr(one, "_gradient_checkpointing_func")]) == int(2 * share)


def test_the_loss_is_the_mean_over_all_targets_of_the_global_batch_and_not_a_mean_of_means(folders):
    _config, engine = build(["task=causal-lm", "batch.micro_batch_size=1"], folders["llama"], torch.float32, ALONE)
    split = ragged_split("causal-lm", num_samples=5)
    micro = [batching.collate(split, np.array([row]), PADDING, engine.device) for row in range(5)]
    with torch.no_grad():
        sums = [
            functional.cross_entropy(
                engine.logits(one)[0, :-1], one.labels[0, 1:], ignore_index=-100, reduction="sum"
            ).item()
            for one in micro
        ]
    targets = int(split.num_targets.sum())
    result = train_step(engine, micro, targets, 0.0)
    assert float(result.loss) == pytest.approx(sum(sums) / targets, rel=1e-6)


@pytest.mark.parametrize("name", ["feature-extraction", "lora", "qlora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_should_train_moves_and_all_of_it_does(name, family, folders):
    settings = ["task=sequence-classification", f"method.name={name}", "batch.global_batch_size=8"]
    config, engine = build(settings, folders[family], torch.float32, ALONE)
    before = {key: value.detach().clone() for key, value in engine.model.named_parameters()}
    trainable = set(model.trainable_parameters(engine.model))
    take_steps(config, engine, ragged_split(config.task), num_steps=4)
    for key, value in engine.model.named_parameters():
        if key not in trainable:
            assert same_bits(value, before[key]), key
        elif not is_unreached(key, family):
            assert not same_bits(value, before[key]), key
    assert trainable


def same_bits(one, other):
    """Packed 4-bit weights are stored as floats, and some of their patterns are no numbers."""
    return torch.equal(one.detach().view(torch.uint8), other.view(torch.uint8))


def is_unreached(key, family):
    """A softmax over keys takes no gradient for what all keys share, their bias."""
    return key.endswith("key.bias") and family in ("bert", "roberta")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_with_masters_in_fp32(dtype, folders):
    half = run(folders["gpt2"], ["method.name=lora"], "sequence-classification", dtype)
    full = run(folders["gpt2"], ["method.name=lora"], "sequence-classification")
    np.testing.assert_allclose(half.losses, full.losses, rtol=2e-2)
    assert {tensor.dtype for tensor in half.engine.trainable_state().values()} == {torch.float32}
    assert {one.dtype for one in model.trainable_parameters(half.engine.model).values()} == {dtype}


def test_gradients_are_clipped_by_their_true_global_norm(folders):
    # Adam's step hides the scale of a gradient, so the clipped one is read just before it.
    engine: Any
    config, engine = build(["method.name=full", "optimizer.max_grad_norm=0.1"], folders["gpt2"], torch.float32, ALONE)
    split = ragged_split(config.task)
    share = batching.cut(split.lengths, BatchConfig(micro_batch_size=5), 1)[0]
    for places in share:
        micro = batching.collate(split, places, PADDING, engine.device)
        engine.backward(engine.loss(micro) / 24)
    weights = list(model.trainable_parameters(engine.model).values())
    true = torch.stack([one.grad.norm() for one in weights if one.grad is not None]).norm()
    seen = []
    engine._optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.stack([one.grad.norm() for one in weights]).norm())
    )
    assert float(engine.apply_gradients(0.0)) == pytest.approx(float(true), rel=1e-6)
    assert float(seen[0]) == pytest.approx(0.1, rel=1e-4)


def test_an_fp16_step_that_overflows_is_skipped_and_halves_the_loss_scale(folders):
    engine: Any
    config, engine = build(["method.name=lora"], folders["gpt2"], torch.float16, ALONE)
    engine._scaler.scale(torch.zeros((), device=engine.device))  # the scaler makes its scale at the first use
    engine._scaler.update(2.0**40)
    before = engine.trainable_state()
    take_steps(config, engine, ragged_split(config.task), num_steps=1)
    assert all(torch.equal(value, before[key]) for key, value in engine.trainable_state().items())
    assert engine._scaler.get_scale() == 2.0**39


def test_evaluating_between_steps_changes_no_step_of_a_quantized_model(folders):
    from ftkit.training.evaluate import evaluate

    def losses(*, looks):
        settings = ["method.name=qlora", "batch.global_batch_size=8"]
        config, engine = build(settings, folders["llama"], torch.bfloat16, ALONE)
        split = ragged_split(config.task)
        found = []
        for seed in range(3):
            found += take_steps(config, engine, ragged_split(config.task, seed=seed), 1).losses
            if looks:
                evaluate(engine, split, config.batch, PADDING, LABELS)
        return found

    assert losses(looks=True) == losses(looks=False)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_positions_that_are_given_are_used_and_those_a_model_would_count_itself_change_nothing(family, folders):
    _config, engine = build([], folders[family], torch.float32, ALONE)
    micro = batching.collate(ragged_split("sequence-classification"), np.array([0, 0]), PADDING, engine.device)
    own = torch.arange(micro.input_ids.shape[1], device=engine.device).expand(2, -1)
    model.set_training(engine.model, False)
    with torch.no_grad():
        expected = engine.logits(micro)
        assert torch.equal(engine.logits(replace(micro, position_ids=own)), expected)
        assert not torch.equal(engine.logits(replace(micro, position_ids=own.flip(1))), expected)
