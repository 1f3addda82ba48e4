"""The plan of a run whose frozen trunk runs once: the pass, then steps that do without."""

import pytest

from ftkit.models.methods.full import Full
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict
from ftkit.records.schema import Verdict
from tests.plan import models

SEQUENCES = Sequences(1000, 128, are_equal=False, num_all=1500, all_tokens=60_000)


def plan(method, *, budget=None, is_cached=False, epochs=3, **cache):
    config = models.run_config(
        "bert", method, cache=cache, batch={"micro_batch_tokens": 1024}, training={"epochs": epochs}
    )
    architecture = models.architecture("bert", num_layers=12, width=256)
    target = find_target("t4", 1, budget, None)
    return predict(config, target, architecture, sequences=SEQUENCES, is_cached=is_cached)


def test_a_plan_of_feature_extraction_says_what_the_pass_takes_and_what_the_steps_gain():
    found, whole = plan(FeatureExtraction()), plan(FeatureExtraction(), trunk="off")
    assert whole.trunk is None
    assert found.trunk.num_bytes == 1500 * 256 * 2  # a vector of each sequence, in fp16
    assert found.trunk.pays_from_epochs == pytest.approx(1, rel=0.1)  # a pass is an epoch of forwards, without the head
    assert found.trunk.step_peak_bytes < found.trunk.pass_peak_bytes - 10 * 2**20  # the layers, of 12 MiB, are gone
    assert found.trunk.seconds == pytest.approx(found.trunk.seconds_per_step / (32 * 128) * 60_000, rel=1e-6)
    assert found.step_seconds < whole.step_seconds / 5


def test_a_plan_of_the_top_layers_keeps_a_vector_of_each_token():
    found, whole = plan(Lora(top_layers=2)), plan(Lora(top_layers=2), trunk="off")
    assert found.trunk.num_bytes == 60_000 * 256 * 2
    assert found.trunk.step_peak_bytes < whole.peak_active_bytes
    assert found.num_trainable_parameters == whole.num_trainable_parameters


def test_a_run_that_fits_with_the_cache_alone_is_not_refused():
    whole = plan(Full(top_layers=2), trunk="off")
    room = plan(Full(top_layers=2)).peak_process_bytes
    budget = f"{(room + whole.peak_process_bytes) // 2}"
    assert plan(Full(top_layers=2), budget=budget, trunk="off").verdict is Verdict.DOES_NOT_FIT
    assert plan(Full(top_layers=2), budget=budget).verdict is not Verdict.DOES_NOT_FIT


def test_where_the_cache_has_all_no_pass_is_planned():
    cold, warm = plan(FeatureExtraction()), plan(FeatureExtraction(), is_cached=True)
    assert warm.trunk.is_done
    assert cold.peak_phase == "trunk"
    assert warm.peak_active_bytes < cold.peak_active_bytes
    assert warm.peak_active_bytes == pytest.approx(cold.trunk.step_peak_bytes, rel=1e-3)  # rounded to 512 bytes each


@pytest.mark.parametrize("method", [Lora(), Full()])
def test_a_run_that_trains_in_all_layers_has_no_pass(method):
    assert plan(method).trunk is None


def test_a_single_epoch_is_planned_without_unless_it_is_asked_for():
    assert plan(FeatureExtraction(), epochs=1).trunk is None
    assert plan(FeatureExtraction(), epochs=1, trunk="on").trunk is not None
