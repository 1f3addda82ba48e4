"""Several micro-batches that go through a streamed layer together give what they give one by one, to the bit."""

import numpy as np
import pytest
import torch

from ftkit.config.recompute import Recompute
from ftkit.data import batching
from ftkit.errors import ConfigError, ModelError
from ftkit.models.activations import offload
from ftkit.models.activations.recompute import set_recompute
from ftkit.models.build import set_training
from ftkit.models.streaming.stream import stream_of
from ftkit.models.structure.layers import transformer_layers
from ftkit.step.step import train_step
from tests import helpers
from tests.models.streaming.conftest import engine_of, gradients_of
from tests.models.streaming.test_stream import CHEAP, DISK, FAMILIES, HEAD, QLORA

CUT = ([0, 1], [2], [3, 4], [5], [6])
"""Sequences of the micro-batches of a step, ragged."""


def together(number):
    return (DISK, f"engine.stream_micro_batches={number}")


def take_steps(engine, num_steps=1):
    """Return the losses of steps of five micro-batches, the gradients of the last, and how often buffers filled."""
    set_training(engine.model, True)
    torch.manual_seed(5)
    split = helpers.ragged_split("causal-lm", num_samples=7)
    micro_batches = [batching.collate(split, np.array(rows), helpers.PADDING, engine.device) for rows in CUT]
    gradients, losses, apply = {}, [], engine.apply_gradients

    def look(rate):
        gradients.update(gradients_of(engine))
        return apply(rate)

    engine.apply_gradients = look
    for _ in range(num_steps):
        losses.append(float(train_step(engine, micro_batches, 40.0, 0.01).loss))
    return losses, gradients, sum(stream_of(engine.model).window.fillings)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_micro_batches_one_by_one(family, deep):
    way = ("method.dropout=0",)
    kinds = ((torch.float32,), (torch.bfloat16,), (torch.bfloat16, QLORA))
    for dtype, *method in kinds if family == "llama" else kinds[:1]:
        wanted = take_steps(engine_of(deep(family), *way, *method, DISK, dtype=dtype))
        for number, *more in (("all", CHEAP), (2, HEAD)) if family == "llama" else (("all",),):
            more += method
            found = take_steps(engine_of(deep(family), *way, *together(number), *more, dtype=dtype))
            assert found[0] == wanted[0]
            assert found[1].keys() == wanted[1].keys()
            assert all(torch.equal(found[1][name], one) for name, one in wanted[1].items())
            assert found[2] < wanted[2]


@pytest.mark.parametrize("recompute", ["layer", "cheap"])
def test_inputs_of_layers_that_wait_on_the_host_change_nothing(recompute, deep, monkeypatch):
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)
    way = ("method.dropout=0", *together("all"), f"model.recompute={recompute}")
    wanted, engine = take_steps(engine_of(deep("llama"), *way), num_steps=2), engine_of(deep("llama"), *way)
    offload.attach(engine.model)  # asked for by name, it is refused on a CPU
    set_recompute(engine.model, Recompute.model_validate(recompute))
    found = take_steps(engine, num_steps=2)
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], one) for name, one in wanted[1].items())


def test_layers_come_twice_a_group_and_not_twice_a_micro_batch(deep):
    counts = {}
    for number in (2, "all"):
        engine = engine_of(deep("llama"), *together(number))
        fillings = [take_steps(engine)[2] for _ in range(2)]
        counts[number] = fillings[1] - fillings[0]
    # Six layers up and down: of twelve the two at each turn are there still.
    assert counts == {2: 3 * 8, "all": 8}


def test_a_layer_draws_its_dropout_again_as_it_drew_it_for_each_micro_batch(deep):
    # Over one layer the draws come in one order in both ways.
    way = ("method.dropout=0.3",)
    wanted, found = (take_steps(engine_of(deep("llama", 1), *way, *more)) for more in ((DISK,), together("all")))
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], one) for name, one in wanted[1].items())


def test_adapters_in_the_top_layers_alone_go_together_over_frozen_ones(deep):
    way = ("method.dropout=0", "method.top_layers=2")
    wanted, found = (take_steps(engine_of(deep("llama"), *way, *more)) for more in ((DISK,), together("all")))
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], one) for name, one in wanted[1].items())


class Doubled(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, **kwargs):
        return self.layer(hidden * 2, **kwargs)


class Doubling(torch.nn.ModuleList):
    """Layers between which a model does something of its own."""

    def __iter__(self):
        return map(Doubled, super().__iter__())


def test_a_model_that_does_something_between_its_layers_is_refused(deep):
    engine = engine_of(deep("llama"), *together("all"))
    transformer_layers(engine.model)[1].__class__ = Doubling
    with pytest.raises(ModelError, match=r"layer 1 of the model gets more .* leave engine\.stream_micro_batches out"):
        take_steps(engine)


def test_it_is_refused_where_nothing_is_streamed(deep):
    with pytest.raises(ConfigError, match=r"engine\.stream_micro_batches"):
        engine_of(deep("llama"), "engine.stream_micro_batches=all")
