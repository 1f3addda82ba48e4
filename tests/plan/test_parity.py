"""The fake trace against a real run, counted by the same dispatch mode: equal to the byte."""

from dataclasses import replace

import pytest

from ftkit.config.tree import ModelConfig, RunConfig
from ftkit.data.batching import Shape
from ftkit.models.methods.full import Full
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora, Qlora
from ftkit.observe.recorded import Given
from ftkit.plan.tracing.trace import trace, trace_trunk
from tests.plan import models

MIXED = {"cheap": 0.25, "layer": 0.5}
"""Of four layers one is cheap, two recompute whole, and one keeps all."""


def layers_for(recompute):
    """As few layers as show a first, a last and every level: what four equal ones do, two do."""
    return models.NUM_LAYERS if recompute == MIXED else 2


@pytest.mark.parametrize(
    ("recompute", "precision"),
    [
        ("none", "fp32"),
        ("none", "bf16"),
        ("cheap", "fp32"),
        (MIXED, "fp32"),
        # What recomputes does so in either type.
        pytest.param("cheap", "bf16", marks=pytest.mark.slow),
        pytest.param(MIXED, "bf16", marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [FeatureExtraction(), Lora(), Qlora(), Full()], ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_plan_counts_the_bytes_of_a_real_step_on_a_cpu_after_every_phase_and_at_the_peak(
    family, method, recompute, precision
):
    config = models.run_config(family, method, recompute)
    architecture = models.architecture(family, layers_for(recompute))
    dtype, sizes = models.DTYPES[precision], models.shape(family)

    planned = trace(config, architecture, dtype, sizes, device_type="cpu")
    real = models.measure(config, architecture, dtype, sizes)

    assert planned.at_marks() == real.at_marks()
    assert planned.peak_bytes() == real.peak_bytes()


@pytest.mark.parametrize("kind", models.OTHERS)
def test_so_it_does_for_other_architectures(kind):
    task, architecture = models.other(kind)
    model = ModelConfig.model_validate({"name": kind, "recompute": {"cheap": 0.5, "layer": 0.5}})
    config = RunConfig.model_validate({"task": task, "model": model, "method": Qlora()})
    sizes = Shape(2, 32, 2, is_padded=kind in models.CLASSIFIERS)

    planned = trace(config, architecture, models.DTYPES["bf16"], sizes, device_type="cpu")
    real = models.measure(config, architecture, models.DTYPES["bf16"], sizes)

    assert planned.at_marks() == real.at_marks()
    assert planned.peak_bytes() == real.peak_bytes()


def test_so_it_does_where_dora_reads_weights_in_4_bits():
    config = models.run_config("llama", Qlora(use_dora=True), {"cheap": 0.5, "layer": 0.5})
    architecture = models.architecture("llama", 2)
    dtype, sizes = models.DTYPES["bf16"], models.shape("llama")

    planned = trace(config, architecture, dtype, sizes, device_type="cpu")
    real = models.measure(config, architecture, dtype, sizes)

    assert planned.at_marks() == real.at_marks()
    assert planned.peak_bytes() == real.peak_bytes()


@pytest.mark.parametrize(
    "method", [FeatureExtraction(), Lora(top_layers=2), Full(top_layers=1)], ids=lambda method: method.name
)
@pytest.mark.parametrize(("family", "precision"), [("llama", "bf16"), ("gpt2", "fp32"), ("bert", "fp32")])
def test_so_it_does_where_a_frozen_trunk_runs_once_and_the_steps_do_without(family, method, precision):
    config, architecture = models.run_config(family, method), models.architecture(family)
    dtype, sizes = models.DTYPES[precision], models.shape(family)

    planned, cut = trace_trunk(config, architecture, dtype, sizes, device_type="cpu")
    real, found = models.measure_trunk(config, architecture, dtype, sizes)
    assert cut == found
    assert planned.at_marks() == real.at_marks()
    assert planned.peak_bytes() == real.peak_bytes()

    given = Given(cut, dtype)
    sizes = replace(sizes, length=1, is_padded=False) if cut.is_pooled else sizes
    planned = trace(config, architecture, dtype, sizes, device_type="cpu", given=given)
    real = models.measure(config, architecture, dtype, sizes, given)
    assert planned.at_marks() == real.at_marks()
    assert planned.peak_bytes() == real.peak_bytes()
