"""After the first steps, what should train has moved, and what is frozen has not; else the run ends with a name."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ftkit.errors import ModelError
from ftkit.machine.process import ProcessContext
from ftkit.models.activations import recompute
from ftkit.training.checks.first_steps import AFTER_STEPS, FirstSteps
from tests.helpers import build, ragged_split, save_tiny_model, take_steps


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("bert"), "bert")


def prepared(bert, method="lora", *settings):
    common = [f"method.name={method}", "batch.global_batch_size=8"]
    config, engine = build([*common, *settings], bert, torch.float32, ProcessContext())
    return config, engine, FirstSteps(engine, 0, may_skip=False)


@pytest.mark.parametrize("method", ["feature-extraction", "lora", "full"])
def test_a_run_that_trains_passes(bert, method):
    config, engine, first = prepared(bert, method)
    take_steps(config, engine, ragged_split("sequence-classification"), AFTER_STEPS)
    notes: list[str] = []
    first.look(AFTER_STEPS, notes.append)
    assert all("had not changed" in note for note in notes)


def test_an_adapter_that_a_hook_froze_is_named(bert):
    config, engine, first = prepared(bert)
    name, parameter = next((name, one) for name, one in engine.model.named_parameters() if ".lora_B." in name)
    master = engine._masters[name]

    def freeze(_):
        master.grad.zero_()

    parameter.register_post_accumulate_grad_hook(freeze)
    engine._optimizer.param_groups[0]["weight_decay"] = 0.0
    take_steps(config, engine, ragged_split("sequence-classification"), AFTER_STEPS)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        first.look(AFTER_STEPS, print)


def test_adapters_that_checkpointing_cut_off_from_frozen_embeddings_are_named(bert, monkeypatch):
    def reentrant(function, *arguments, **keywords):
        """Recompute as torch once did: without a gradient of its input, a layer gets none."""
        return checkpoint(partial(function, **keywords), *arguments, use_reentrant=True)

    monkeypatch.setitem(recompute._CHECKPOINTS, "layer", reentrant)
    config, engine, first = prepared(bert, "lora", "model.gradient_checkpointing=1")
    engine.model.get_input_embeddings()._forward_hooks.clear()  # by which PEFT lets the embeddings need a gradient
    take_steps(config, engine, ragged_split("sequence-classification"), AFTER_STEPS)
    with pytest.raises(ModelError, match=r"lora_B.* did not change in 2 steps.*model\.recompute=none"):
        first.look(AFTER_STEPS, print)


def test_a_frozen_weight_that_something_wrote_to_is_named(bert):
    _, engine, first = prepared(bert)
    name, frozen = next((name, one) for name, one in engine.model.named_parameters() if not one.requires_grad)
    with torch.no_grad():
        frozen.add_(1.0)
    with pytest.raises(ModelError, match=f"{name.replace('.', chr(92) + '.')} changed in training, though frozen"):
        first.look(AFTER_STEPS, print)


def test_steps_of_fp16_that_were_all_skipped_are_waited_for(bert):
    _, engine, _ = prepared(bert)
    first = FirstSteps(engine, 0, may_skip=True)
    for step in range(1, 20):
        first.look(step, print)
    with pytest.raises(ModelError, match="did not change"):
        first.look(20, print)
