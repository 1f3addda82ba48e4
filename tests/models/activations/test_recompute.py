"""What a layer computes again in its backward changes no loss and no gradient, to the bit."""

import numpy as np
import pytest
import torch

from ftkit.config.recompute import Recompute
from ftkit.data import batching
from ftkit.errors import ModelError
from ftkit.machine.process import ProcessContext
from ftkit.models.activations import offload
from ftkit.models.activations.recompute import set_recompute
from ftkit.models.build import set_training, trainable_parameters
from ftkit.models.foreign import checkpointing_layers
from tests.helpers import PADDING, build, ragged_split, save_tiny_model

FAMILIES = ["bert", "falcon", "gemma2", "gpt2", "llama", "mixtral", "modernbert"]
METHODS = {
    "lora": ["method.name=lora", "method.dropout=0.1"],
    "lora as PEFT has it": ["method.name=lora", "method.dropout=0.1", "model.lean=false"],
    "qlora": ["method.name=qlora", "method.dropout=0.1"],
    "qlora as PEFT has it": ["method.name=qlora", "model.lean=false"],
    "full": ["method.name=full"],
}
LEVELS = [Recompute(cheap=1.0), Recompute(cheap=0.5, layer=0.5)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save_tiny_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def step(engine, recompute):
    """Return the loss and the gradients of two micro-batches."""
    set_recompute(engine.model, recompute)
    set_training(engine.model, True)
    torch.manual_seed(5)
    engine.discard_gradients()
    split = ragged_split("sequence-classification", num_samples=4)
    micro_batches = [batching.collate(split, np.array(rows), PADDING, engine.device) for rows in ([0, 1, 2], [3])]
    losses = []
    for micro_batch in micro_batches:
        losses.append(engine.loss(micro_batch))
        engine.backward(losses[-1])
    parameters = trainable_parameters(engine.model)
    masters = {name: engine._masters[name].grad for name in parameters}
    gradients = {name: one.grad if masters[name] is None else masters[name] for name, one in parameters.items()}
    return [loss.item() for loss in losses], {name: one.clone() for name, one in gradients.items() if one is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_level_gives_the_same_losses_and_gradients_to_the_bit(family, method, dtype, folders):
    _, engine = build(["task=sequence-classification", *METHODS[method]], folders[family], dtype, ProcessContext())
    losses, gradients = step(engine, Recompute())

    assert gradients
    for level in LEVELS:
        found = step(engine, level)
        assert found[0] == losses
        assert found[1].keys() == gradients.keys()
        assert [name for name, one in found[1].items() if not torch.equal(one, gradients[name])] == []


@pytest.mark.parametrize(
    ("family", "method"), [("llama", "lora"), ("gpt2", "lora as PEFT has it"), ("mixtral", "qlora"), ("bert", "full")]
)
def test_so_does_every_level_whose_layers_keep_on_the_host_what_they_keep(family, method, folders, monkeypatch):
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)
    settings = ["task=sequence-classification", *METHODS[method]]
    _, engine = build(settings, folders[family], torch.bfloat16, ProcessContext())
    losses, gradients = step(engine, Recompute())

    offload.attach(engine.model)
    for level in [Recompute(), Recompute(layer=1.0), *LEVELS]:
        watch = Counted()
        with offload.watched(engine.model, watch):
            found = step(engine, level)
        assert found[0] == losses
        assert [name for name, one in found[1].items() if not torch.equal(one, gradients[name])] == []
        assert watch.left > 0
        assert watch.left == watch.came


class Counted:
    """Counts the storages that leave for the host and those that come back."""

    def __init__(self):
        self.left = self.came = 0

    def waits_on_host(self, _):
        self.left += 1

    def comes_back(self, _):
        self.came += 1


def test_the_shares_of_the_layers_are_spread_evenly():
    assert Recompute(layer=0.5).levels(4) == ["none", "layer", "none", "layer"]
    assert Recompute(cheap=0.5, layer=0.25).levels(8) == [
        "none", "cheap", "cheap", "layer", "none", "cheap", "cheap", "layer"
    ]  # fmt: skip
    assert Recompute(cheap=1.0).levels(3) == 3 * ["cheap"]


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ModelError, match=r"Linear cannot recompute its layers; give --recompute none"):
        set_recompute(torch.nn.Linear(2, 2), Recompute(cheap=1.0))


def test_a_level_that_is_set_anew_replaces_the_one_before(folders):
    _, engine = build(["model.recompute=layer"], folders["llama"], torch.float32, ProcessContext())
    set_recompute(engine.model, Recompute())

    assert not any(layer.gradient_checkpointing for layer in checkpointing_layers(engine.model))
