"""Tensors on `meta` against fake ones, under CUDA's way of computing: the same births, deaths and peaks."""

import pytest
import torch

from ftkit.models.methods.full import Full
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora, Qlora
from ftkit.plan.choices.changes import changed
from ftkit.plan.choices.interpolate import between
from ftkit.plan.inputs.shapes import plan_shape
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict
from ftkit.plan.tracing import trace as tracing
from ftkit.plan.tracing.trace import trace
from ftkit.records.schema import Basis
from tests.plan import models

LEAST_BYTES = 64
"""What is smaller is a counter or an index: one kind of tensors checks the bounds of an index, the other need not."""


def story(tape):
    """Return the storages of a tape with all that is known of their births, but for the operator's name."""
    return [
        (birth.size, birth.phase, birth.step, birth.micro_batch, birth.module, birth.layer, birth.role)
        for birth in tape.births
        if birth.size > LEAST_BYTES
    ]


@pytest.mark.parametrize("recompute", ["none", {"cheap": 0.5, "layer": 0.5}], ids=str)
@pytest.mark.parametrize("method", [FeatureExtraction(), Lora(), Qlora(), Full()], ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_tensors_on_meta_tell_the_same_as_fake_ones(family, method, recompute, monkeypatch):
    config, architecture = models.run_config(family, method, recompute), models.architecture(family)
    arguments = (config, architecture, torch.bfloat16, models.shape(family))
    monkeypatch.setattr(tracing, "fake_tensors", lambda: pytest.fail("meta was not enough"))
    on_meta = trace(*arguments)
    monkeypatch.undo()
    monkeypatch.setattr(tracing, "meta_tensors", tracing.fake_tensors)
    faked = trace(*arguments)

    assert story(on_meta) == story(faked)
    assert on_meta.peak_bytes() == faked.peak_bytes()


@pytest.mark.parametrize("recompute", ["none", {"cheap": 0.5, "layer": 0.5}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_what_lies_between_two_predictions_is_as_much_as_traced_or_up_to_a_tenth_more(family, recompute):
    config, place = models.run_config(family, Lora(), recompute), find_target("t4")
    architecture = models.architecture(family, width=256)
    sizes = {size: changed(config, {"batch.micro_batch_size": size, "data.max_length": 128}) for size in (1, 4, 16)}
    traced = {size: predict(one, place, architecture) for size, one in sizes.items()}
    middle = between(traced[1], traced[16], plan_shape(sizes[4], 1))

    # A sequence alone has no padding mask: at the lower end it is missing.
    assert 0.99 <= middle.peak_active_bytes / traced[4].peak_active_bytes < 1.1
    # Launches and arithmetic cross over somewhere in between; a sequence alone launches nothing for a mask.
    assert 0.95 <= middle.step_seconds / traced[4].step_seconds < 1.3
    assert middle.tokens_per_second == pytest.approx(
        traced[4].tokens_per_second * traced[4].step_seconds / middle.step_seconds
    )
    assert (middle.micro_batch_size, middle.num_micro_batches) == (4, traced[4].num_micro_batches)
    assert middle.basis is Basis.INTERPOLATED
    assert middle.found == "between micro-batches of 1 and 16"


@pytest.mark.parametrize(
    ("method", "lean", "unpadded"),
    [
        (Lora(), True, True),
        (Full(), True, True),
        (FeatureExtraction(), True, True),
        (Lora(layers=(1,)), True, False),
        (Lora(), False, False),
    ],
    ids=["lora", "full", "feature-extraction", "top layers", "plain forms"],
)
def test_an_encoder_is_prepared_to_run_without_padding_on_a_cpu(method, lean, unpadded):
    config = models.run_config("bert", method)
    config = config.model_copy(update={"model": config.model.model_copy(update={"lean": lean})})
    given = config, models.architecture("bert", 2), torch.float32, models.shape("bert")
    assert trace(*given, device_type="cpu").unpadded == unpadded
    assert not trace(*given).unpadded, "on a GPU"


def test_layers_without_padding_are_alike_so_that_a_few_tell_of_all():
    config, target = models.run_config("bert", Lora()), find_target("cpu")
    assert predict(config, target, models.architecture("bert", 6)).basis is Basis.TRACED
