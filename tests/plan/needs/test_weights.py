"""What the weights of a run take at least, before anything is traced."""

import pytest

from ftkit.engine.resolve import resolve
from ftkit.models.bnb import least_bytes
from ftkit.models.build import build_empty_model
from ftkit.models.methods.full import Full
from ftkit.models.methods.lora import Lora, Qlora
from ftkit.plan.inputs.target import find_target
from ftkit.plan.needs import weights
from tests.plan import models

LAYERS = 14


@pytest.mark.parametrize(
    "method", [Lora(), Lora(layers=tuple(range(7))), Lora(top_layers=2), Qlora(), Full()], ids=repr
)
def test_a_few_layers_tell_what_all_weights_take(method, monkeypatch):
    architecture = models.architecture("llama", LAYERS)
    run = resolve(models.run_config("llama", method), find_target("t4").devices)
    whole = build_empty_model(run.config, architecture, run.dtype)
    depths = []

    def build(config, small, dtype):
        depths.append(small.num_hidden_layers)
        return build_empty_model(config, small, dtype)

    monkeypatch.setattr(weights, "build_empty_model", build)
    assert weights.least_weight_bytes(run, architecture) == sum(map(least_bytes, whole.parameters()))
    assert max(depths) < LAYERS
