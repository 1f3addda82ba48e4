"""A sweep over real processes: what fails is a row with its reason."""

import sys
from pathlib import Path

import pytest

from ftkit.config.files import load_config
from ftkit.engine.resolve import Devices, resolve
from ftkit.errors import ConfigError
from ftkit.records.files import RecordWriter
from ftkit.records.schema import Measurement, ResultLine, RunLine
from ftkit.sweep.axes import make_trials, parse_axis
from ftkit.sweep.sweep import Runner, open_folder, run_sweep

BODIES = {
    "1": "raise MemoryError('planted')",
    "2": "import os; os.abort()",
    "3": "import time; time.sleep(600)",
}


def write_good(place):
    """What a trial that works leaves."""
    writer = RecordWriter(Path(place) / "record.jsonl")
    seed = int(Path(place).name[-1])
    config = build([f"training.seed={seed}"]).config.model_dump(mode="json")
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
    good = f"from tests.sweep.test_sweep import write_good; write_good({str(place)!r})"
    return [sys.executable, "-c", BODIES.get(seed, good)]


def build(settings, world_size=1):
    return resolve(load_config(settings=settings), Devices("cpu", has_bf16=False, world_size=world_size))


def rows(trials, folder, time_limit=60.0, **more):
    runner = Runner(command=command, predict=lambda trial: None, time_limit=time_limit, **more)
    return list(run_sweep(trials, folder, runner))


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_a_planted_out_of_memory_crash_and_hang_leave_five_rows_and_are_not_run_again(tmp_path, importable):
    trials = make_trials([parse_axis("training.seed=0,1,2,3,4")], build)
    hanging = trials[3]
    found = rows([trial for trial in trials if trial is not hanging], tmp_path)
    found += rows([hanging], tmp_path, time_limit=2.0)  # the others may take as long as a busy machine makes them
    ends = [record.result.failure or record.result.status for _, record, _ in found]
    assert ends == ["completed", "out of memory", "crash", "completed", "time limit"]
    assert all(record.result.reason for _, record, _ in found if record.result.status == "failed")
    assert [was_done for _, _, was_done in rows(trials, tmp_path)] == [True] * 5


def test_what_is_stale_is_run_again_and_whoever_asked_is_told_of_what_begins(tmp_path, importable):
    trials = make_trials([parse_axis("training.seed=0,2,4")], build)
    rows(trials, tmp_path)
    begun: list[object] = []
    again = rows(trials, tmp_path, begin=begun.append, is_stale=lambda record: record.result.status == "failed")
    assert [was_done for _, _, was_done in again] == [True, False, True]
    assert begun == [trials[1]]


def test_a_configuration_whose_record_breaks_off_is_run_again(tmp_path, importable):
    trials = make_trials([parse_axis("training.seed=0,4")], build)
    rows(trials, tmp_path)
    path = tmp_path / trials[1].name / "record.jsonl"
    path.write_text(path.read_text().splitlines()[0] + '\n{"kind": "result", "sta')
    assert [was_done for _, _, was_done in rows(trials, tmp_path)] == [True, False]


def test_the_measurement_of_another_configuration_is_never_written_over(tmp_path, importable):
    rows(make_trials([parse_axis("training.seed=0")], build), tmp_path)
    other = make_trials([parse_axis("training.seed=0")], lambda settings, _: build([*settings, "method.rank=4"]))
    with pytest.raises(ConfigError, match=r"holds a measurement of another configuration.*--output"):
        open_folder(other, tmp_path, overwrite=False)
    open_folder(other, tmp_path, overwrite=True)
    same = make_trials([parse_axis("training.seed=0")], build)
    open_folder(same, tmp_path, overwrite=False)
    (tmp_path / same[0].name / "record.jsonl").write_text("")  # killed before its first line
    open_folder(same, tmp_path, overwrite=False)


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make .*; name another folder with --output"):
        open_folder([], tmp_path / "file" / "sweep", overwrite=False)


def test_a_configuration_that_cannot_be_is_a_row_with_its_reason(tmp_path):
    trials = make_trials([parse_axis("engine.name=plain"), parse_axis("engine.zero_stage=3")], build)
    ((_, record, _),) = rows(trials, tmp_path)
    assert record.result.failure == "refused"
    assert "give --engine deepspeed" in record.result.reason
    assert [was_done for _, _, was_done in rows(trials, tmp_path)] == [True]
