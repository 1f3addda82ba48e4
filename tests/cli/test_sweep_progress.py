"""What a sweep says of each configuration as it ends."""

import pytest

from ftkit.cli.sweep_progress import SweepProgress
from ftkit.records.schema import Measurement, Prediction, ResultLine, RunLine, RunRecord
from ftkit.sweep.axes import Trial

LINE = RunLine(
    name="one", started="", config={}, engine="plain", precision="bf16", world_size=1, device="cpu", num_steps=1
)


def ended(measurement=None, prediction=None, **more):
    end = ResultLine(num_steps=1, train_seconds=1, total_seconds=1, measurement=measurement or Measurement(), **more)
    return RunRecord(run=LINE.model_copy(update={"prediction": prediction}), result=end)


def said(capsys, record, *, is_quiet=False, was_done=False):
    progress = SweepProgress(1, is_quiet=is_quiet)
    progress.begin(Trial("001-lora", {}))
    progress.end(Trial("001-lora", {}), record, was_done=was_done)
    out, err = capsys.readouterr()
    assert out == "", "standard output is for the result alone"
    return err


@pytest.mark.parametrize(
    ("predicted", "words"), [(2**20, "predicted to the byte"), (2**20 + 2**16, "predicted +6.25 %"), (None, "1.00 MiB")]
)
def test_a_measurement_is_said_with_the_error_of_its_prediction(capsys, predicted, words):
    measured = Measurement(peak_active_bytes=2**20, tokens_per_second=1234.5)
    line = said(capsys, ended(measured, Prediction(peak_active_bytes=predicted), status="completed"))
    assert line.startswith("[1/1] 001-lora: 1.00 MiB, 1,234 tokens/s")
    assert words in line


def test_what_was_not_taken_is_not_said(capsys):
    line = said(capsys, ended(status="completed"), was_done=True)
    assert line == "[1/1] 001-lora: completed (done before)\n"


def test_a_failure_is_said_with_its_kind_and_reason(capsys):
    record = ended(status="failed", failure="time limit", reason="not done after 5 s; ended")
    assert "001-lora: time limit: not done after 5 s; ended" in said(capsys, record)


def test_a_quiet_sweep_says_notes_alone(capsys):
    assert said(capsys, ended(status="completed"), is_quiet=True) == ""
    SweepProgress(1, is_quiet=True).note("no prediction for 001-lora")
    assert capsys.readouterr().err == "no prediction for 001-lora\n"
