"""A sweep over real processes: what fails is a row with its reason."""

import sys
from pathlib import Path

import pytest

from ftkit.config_io import load_config
from ftkit.errors import ConfigError
from ftkit.records import Measurement, RecordWriter, ResultLine, RunLine
from ftkit.sweep import make_trials, parse_axis, read_axes, run_sweep

BODIES = {
    "1": "raise MemoryError('planted')",
    "2": "import os; os.abort()",
    "3": "import time; time.sleep(600)",
}


def write_good(place):
    """What a trial that works leaves."""
    writer = RecordWriter(Path(place) / "record.jsonl")
    seed = int(Path(place).name[-1])
    config = load_config(settings=[f"training.seed={seed}"]).model_dump(mode="json")
    writer.write(
        RunLine(
            name=Path(place).name, started="", config=config, engine="plain", precision="fp32", world_size=1,
            device="cpu", num_steps=1,
        )
    )  # fmt: skip
    writer.write(
        ResultLine(status="completed", num_steps=1, train_seconds=1, total_seconds=1, measurement=Measurement())
    )
    writer.close()


def command(trial, place):
    seed = trial.settings["training.seed"]
    good = f"from tests.unit.test_sweep import write_good; write_good({str(place)!r})"
    return [sys.executable, "-c", BODIES.get(seed, good)]


def build(settings):
    return load_config(settings=settings)


def test_a_planted_out_of_memory_crash_and_hang_leave_five_rows_and_are_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    trials = make_trials([parse_axis("training.seed=0,1,2,3,4")], build)
    rows = list(run_sweep(trials, tmp_path, command, lambda trial: None, time_limit=30 / 3))
    ends = [record.result.failure or record.result.status for _, record, _ in rows]
    assert ends == ["completed", "out of memory", "crash", "time limit", "completed"]
    assert all(record.result.reason for _, record, _ in rows[1:4])
    again = list(run_sweep(trials, tmp_path, command, lambda trial: None, time_limit=10))
    assert [was_done for _, _, was_done in again] == [True] * 5


def test_a_configuration_that_cannot_be_is_a_row_with_its_reason(tmp_path):
    trials = make_trials([parse_axis("engine.name=plain"), parse_axis("engine.zero_stage=3")], build)
    ((_, record, _),) = run_sweep(trials, tmp_path, command, lambda trial: None, time_limit=10)
    assert record.result.failure == "refused"
    assert "choose engine.name=deepspeed" in record.result.reason


def test_a_sweep_is_the_product_of_its_axes_and_joined_keys_move_together():
    axes = [parse_axis("method=lora,full"), parse_axis("engine.zero_stage:world_size=null:1,2:2")]
    trials = make_trials(axes, build)
    assert [(t.config.method.name, t.config.engine.zero_stage, t.world_size) for t in trials] == [
        ("lora", None, 1), ("lora", 2, 2), ("full", None, 1), ("full", 2, 2),
    ]  # fmt: skip


def test_a_sweep_file_has_axes_and_a_list_of_configurations():
    axes = read_axes({"method": ["lora", "full"], "configurations": [{"training.seed": 1}, {"training.seed": 2}]})
    assert len(make_trials(axes, build)) == 4


@pytest.mark.parametrize("text", ["method", "=1", "a:b=1", "method="])
def test_an_axis_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match="--sweep"):
        parse_axis(text)
