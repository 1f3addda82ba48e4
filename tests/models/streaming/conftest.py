"""Tiny models of six layers, and a step over them."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers

from ftkit.data import batching
from ftkit.machine.disk import CACHE_VARIABLE
from ftkit.machine.process import ProcessContext
from ftkit.models import build
from ftkit.models.build import set_training
from ftkit.models.foreign import patched
from ftkit.models.streaming import sources
from tests import helpers

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")
"""As transformers' configurations call the number of layers."""


class Step(NamedTuple):
    loss: list[float]
    gradients: dict[str, torch.Tensor]
    logits: torch.Tensor


def deep_model(folder, family, num_layers=6):
    """Save a tiny random model of more than two layers, which is all that a window holds; returns its folder."""
    config = helpers.tiny_config(family)
    for name in DEPTHS:
        if name in config.to_dict():
            setattr(config, name, num_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number % 2] for number in range(num_layers)]
    torch.manual_seed(7)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep packed layers in a folder of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def deep(tmp_path_factory):
    """Return a function that gives the folder of a deep model of a family, made once."""
    made = {}

    def folder(family, num_layers=6):
        if (family, num_layers) not in made:
            made[family, num_layers] = deep_model(tmp_path_factory.mktemp(family) / "model", family, num_layers)
        return made[family, num_layers]

    return folder


def engine_of(model, *settings, dtype=torch.float32):
    """Build an engine whose layers recompute whole, as streamed ones do."""
    given = ["task=causal-lm", "method.name=lora", "method.dropout=0.1", "model.recompute=layer", *settings]
    return helpers.build(given, model, dtype, ProcessContext())[1]


def from_ram(process=None):
    """Let `disk` be `ram`, which is refused on a CPU, while a block runs."""

    def in_ram(stored, layout, tokens, limit, note):
        return sources.in_ram(stored, layout, tokens, process or ProcessContext(), note)

    return patched(build, "on_disk", in_ram)


def take_step(engine, num_steps=1):
    """Take steps of two ragged micro-batches; returns losses, the last gradients, and logits of an evaluation."""
    set_training(engine.model, True)
    torch.manual_seed(5)
    split = helpers.ragged_split("causal-lm", num_samples=5)
    losses, gradients = [], {}
    for _ in range(num_steps):
        for rows in ([0, 1, 2], [3, 4]):
            loss = engine.loss(batching.collate(split, np.array(rows), helpers.PADDING, engine.device))
            losses.append(float(loss.detach()))
            engine.backward(loss)
        gradients = gradients_of(engine)
        engine.apply_gradients(0.01)
    return Step(losses, gradients, helpers.logits_of(engine.model, split))


def gradients_of(engine):
    """Return the sums of the gradients: those of the fp32 masters."""
    return {name: master.grad.clone() for name, master in engine._masters.items() if master.grad is not None}
