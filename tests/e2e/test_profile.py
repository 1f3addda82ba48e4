"""`ftkit profile` as a user runs it: real child processes, a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.config.engine import EngineConfig
from ftkit.config.tree import RunConfig
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict
from ftkit.records.files import read_record
from tests.helpers import save_tiny_model

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PHASES = ["load", "forward", "backward", "optimizer", "evaluation"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "bert", "bert")


def command(model, output, *more):
    base = ["--model", model, "--max-length", 32, "--global-batch-size", 8, "--steps", 3, "--output", output]
    return [sys.executable, "-m", "ftkit", "profile", *map(str, [*base, *more])]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def run(model, output, *more, **variables):
    return subprocess.run(
        command(model, output, *more), capture_output=True, text=True, env=environment(**variables), timeout=500
    )


@pytest.fixture(scope="module")
def swept(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    done = run(model, folder, "--sweep", "method=lora,full", "--json")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_json_is_all_that_is_said_and_what_report_says_of_the_same_folder(swept):
    folder, done = swept
    assert done.stderr == ""
    rows = json.loads(done.stdout)
    assert [row["status"] for row in rows] == ["completed"] * 2
    report = CliRunner().invoke(main, ["report", str(folder), "--json"])
    assert report.exit_code == 0, report.output
    assert json.loads(report.stdout) == rows
    assert report.stderr == ""
    assert "001-lora" in (folder / "report.html").read_text(encoding="utf-8")


def test_counted_peaks_are_predicted_to_the_byte(swept):
    for row in json.loads(swept[1].stdout):
        assert row["peak_active_bytes"] == row["predicted_peak_active_bytes"]
        assert sum(row["peak_breakdown"].values()) == row["peak_active_bytes"]
        assert row["peak_breakdown"] == row["prediction"]["peak_breakdown"]


def test_each_rank_and_phase_has_its_peaks_parts_and_largest_tensors(swept):
    for row in json.loads(swept[1].stdout):
        assert [(phase["rank"], phase["phase"]) for phase in row["phases"]] == [(0, phase) for phase in PHASES]
        assert row["peak_active_bytes"] == max(phase["peak_active_bytes"] for phase in row["phases"])
        for phase in row["phases"]:
            assert sum(phase["peak_breakdown"].values()) == phase["peak_active_bytes"]
            assert phase["host_bytes"] == phase["peak_process_bytes"] > 2**26  # the resident set, with torch in it
            assert phase["peak_reserved_bytes"] is None  # a CPU has no caching allocator
            assert 1 <= len(phase["largest_tensors"]) <= 10
            known = [one["module"] for one in phase["largest_tensors"] if one["kind"] in ("parameter", "activation")]
            assert all("." in module for module in known)
        activations = [one["module"] for one in row["largest_tensors"] if one["kind"] == "activation"]
        assert any("encoder.layer" in module for module in activations)
        kinds = {tensor["kind"]: tensor["module"] for tensor in row["largest_tensors"]}
        assert "bert" in kinds.get("optimizer", "bert")  # of a master the weight, and of a moment too


def test_speed_versions_and_device_are_taken_and_what_was_not_stays_empty(swept):
    for row in json.loads(swept[1].stdout):
        assert row["num_timed_steps"] == 3
        assert row["step_seconds"] > 0
        assert row["step_seconds_spread"] >= 0
        assert row["tokens_per_second"] == pytest.approx(32 * row["samples_per_second"])
        # Both take the CPU's peak as it was timed; nothing is computed twice here, so the FLOPs are the plan's.
        planned = row["prediction"]["model_flops_utilization"] * row["prediction"]["step_seconds"]
        assert row["model_flops_utilization"] * row["step_seconds"] == pytest.approx(planned, rel=0.01)
        assert row["active_source"] == "counted storages"
        assert row["process_source"] == "resident set"
        assert row["device"] == "cpu"
        assert {"ftkit", "python", "torch", "transformers"} <= set(row["versions"])


def test_a_step_of_each_is_recorded_as_a_timeline_with_the_peak_of_the_plan(swept):
    folder, done = swept
    for row in json.loads(done.stdout):
        line = read_record(folder / row["name"]).timeline
        totals = [sum(parts) for parts in zip(*line.live_bytes.values(), strict=True)]
        assert max(totals) == row["peak_active_bytes"]
        assert {"forward", "backward", "optimizer"} <= set(line.phases)


def test_a_stopped_sweep_goes_on_where_it_was(swept, model):
    folder, _ = swept
    path = folder / "002-full" / "record.jsonl"
    path.write_text(path.read_text().splitlines()[0] + '\n{"kind": "timeli')
    before = (folder / "001-lora" / "record.jsonl").read_text()
    done = run(model, folder, "--sweep", "method=lora,full")
    assert done.returncode == 0, done.stderr
    first, second = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert "001-lora" in first
    assert "done before" in first
    assert "002-full" in second
    assert "predicted to the byte" in second
    assert "2 configurations, 0 failed; the report:" in done.stdout
    assert (folder / "001-lora" / "record.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sweep", "methd=lora,full"], "did you mean 'method'"),
        (["--sweep", "rank=four"], "method.rank='four'"),
        (["--sweep", "method=lora", "--memory-snapshot"], "torch's record of its CUDA allocator"),
        (["--sweep-file", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--set", "batch.micro_batch_tokens=auto"], "has no shape to measure"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_a_sentence_before_anything_runs(model, tmp_path, arguments, sentence):
    done = CliRunner().invoke(main, command(model, tmp_path / "out", *arguments)[3:])
    assert done.exit_code in (2, 7)
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()


PLANTED = """
import os, sys, time
from pathlib import Path

arguments = sys.orig_argv
if "ftkit.cli.profile_one" in arguments:
    said = (Path(arguments[arguments.index("ftkit.cli.profile_one") + 1]) / "config.yaml").read_text()
    if "seed: 2" in said:
        os.abort()
    if "seed: 3" in said:
        time.sleep(600)
"""


@pytest.mark.slow
def test_a_planted_out_of_memory_crash_and_hang_leave_five_rows_and_a_summary(model, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PLANTED)
    (tmp_path / "sweep.yaml").write_text(
        "configurations:\n- {training.seed: 0}\n- {training.seed: 1, batch.global_batch_size: 131072, "
        "batch.micro_batch_size: 131072}\n- {training.seed: 2}\n- {training.seed: 3}\n- {training.seed: 4}\n"
    )
    more = ["--sweep-file", tmp_path / "sweep.yaml", "--memory-limit", "2GiB", "--time-limit", 60]
    done = run(model, tmp_path / "out", *more, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stderr
    assert "5 configurations, 3 failed; the report:" in done.stdout
    folders = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    results = [read_record(folder).result for folder in folders]
    ends = [result.failure or result.status for result in results]
    assert ends == ["completed", "out of memory", "crash", "time limit", "completed"]
    assert "not done after 60 s" in results[3].reason
    assert "SIGABRT" in results[2].reason


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_no_process_and_says_how_it_goes_on(model, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PLANTED)
    variables = environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    arguments = command(model, tmp_path / "out", "--sweep", "training.seed=3", "--no-plan")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=variables)
    output = tmp_path / "out" / "001-3" / "output.txt"
    while not output.exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in running if str(tmp_path).encode() in line]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_under_zero_are_measured_each_and_predicted_within_two_percent(model, tmp_path):
    # The embedded model: in a tiny one a few buffers of fixed size would be all that there is to predict.
    shape = ["--model", "demo", "--max-length", 128, "--global-batch-size", 32]
    done = run(model, tmp_path, *shape, "--sweep", "zero-stage:world_size=2:2,3:2", "--json")
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout):
        assert row["status"] == "completed", row["reason"]
        assert [(phase["rank"], phase["phase"]) for phase in row["phases"]] == [
            (rank, phase) for rank in (0, 1) for phase in PHASES
        ]
        assert row["host_bytes"] > row["peak_process_bytes"]
        assert row["peak_active_bytes_error"] == pytest.approx(0, abs=0.02)


@pytest.mark.distributed
def test_two_ranks_are_planned_as_they_are_launched_by_zero_2(model, tmp_path):
    done = run(model, tmp_path, "--sweep", "world_size=2", "--method", "full", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    line = read_record(tmp_path / row["name"]).run
    assert (line.engine, line.zero_stage, row["engine"]) == ("deepspeed", 2, "ZeRO-2")
    config = RunConfig.model_validate(line.config)
    planned = {
        stage: predict(config.model_copy(update={"engine": EngineConfig(zero_stage=stage)}), find_target(num_devices=2))
        for stage in (0, 2)
    }
    assert row["predicted_peak_active_bytes"] == planned[2].peak_active_bytes != planned[0].peak_active_bytes
    assert row["peak_active_bytes"] == pytest.approx(planned[2].peak_active_bytes, rel=0.02)  # when cycles go varies
