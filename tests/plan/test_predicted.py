"""The types of a prediction."""

import pytest
from pydantic import ValidationError

from ftkit.models.methods.lora import Lora
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict
from ftkit.plan.predicted import FormulaPrediction, TracedPrediction
from ftkit.records.files import RecordWriter, read_record
from ftkit.records.schema import RunLine
from tests.plan import models


@pytest.fixture(scope="module")
def prediction():
    return predict(models.run_config("gpt2", Lora()), find_target("t4"), models.architecture("gpt2"))


def test_a_traced_prediction_has_a_peak_and_a_time_or_does_not_exist(prediction):
    assert isinstance(prediction, TracedPrediction)
    for name in ("peak_active_bytes", "peak_process_bytes", "peak_breakdown", "budget_bytes", "fits", "step_seconds"):
        with pytest.raises(ValidationError, match=name):
            TracedPrediction.model_validate(prediction.model_dump(exclude={name}))


def test_a_prediction_by_a_formula_has_a_peak_and_no_time(prediction):
    without = FormulaPrediction.model_validate(prediction.model_dump(exclude={"step_seconds"}))

    assert without.step_seconds is None
    assert not isinstance(without, TracedPrediction)
    with pytest.raises(ValidationError, match="peak_process_bytes"):
        FormulaPrediction.model_validate(prediction.model_dump(exclude={"peak_process_bytes"}))


def test_a_record_keeps_all_of_a_plan(prediction, tmp_path):
    line = RunLine(
        name="one", started="2026-01-02T03:04:05Z", config={}, engine="plain", precision="fp16", world_size=1,
        device="cpu", num_steps=1, prediction=prediction,
    )  # fmt: skip
    with RecordWriter(tmp_path / "record.jsonl") as writer:
        writer.write(line)

    assert read_record(tmp_path / "record.jsonl").run.prediction.model_dump() == prediction.model_dump()
