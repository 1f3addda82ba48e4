"""A run goes on to the end that it had, or to a later one."""

import hashlib
import json
import shutil

import pytest
from safetensors.torch import load_file

from ftkit.records.files import read_record
from tests.e2e.command import flags, run
from tests.e2e.conftest import work

__all__ = ["work"]
CONSTANT = ("--schedule", "constant", "--warmup-steps", 0, "--set", "training.log_every=1")
FINISHED = 5
"""The exit code of a checkpoint that does not go on."""


@pytest.fixture(scope="module")
def finished(work, tmp_path_factory):
    """A run of one epoch of eight steps; its schedule does not depend on its end."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = run(*flags(work, folder, "--epochs", 1, *CONSTANT))
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def num_tokens(record):
    return record.result.measurement.tokens_per_second * record.result.train_seconds


def losses(folder):
    return {line.step: line.loss for line in read_record(folder).steps}


@pytest.mark.parametrize("end", [("--epochs", 2), ("--max-steps", 16), ("--set", "training.epochs=2")])
def test_a_finished_run_that_is_trained_for_longer_is_the_run_that_was_as_long_from_the_start(
    end, copy, work, tmp_path
):
    done = run("--resume", copy, *end)
    assert done.exit_code == 0, done.output
    assert "going on from step 8 to step 16; the run was to end at step 8" in done.output
    if not (tmp_path.parent / "whole").exists():
        assert run(*flags(work, tmp_path.parent / "whole", "--epochs", 2, *CONSTANT)).exit_code == 0
    assert losses(copy) == losses(tmp_path.parent / "whole")
    record = read_record(copy)
    assert (record.run.num_steps, record.result.num_steps) == (16, 16)
    assert record.result.train_seconds < record.result.total_seconds
    assert record.run.resumed_step == 8
    assert "at step 8; times and throughput are of all" in " ".join(done.output.split())
    # As many tokens in all, whoever took them: the rates are over the time of both processes.
    assert num_tokens(record) == pytest.approx(num_tokens(read_record(tmp_path.parent / "whole")))
    assert record.result.measurement.num_timed_steps == 8
    trained = [load_file(one / "model" / "adapter_model.safetensors") for one in (copy, tmp_path.parent / "whole")]
    assert all(trained[0][name].equal(tensor) for name, tensor in trained[1].items())


def test_a_falling_schedule_spans_the_new_length_and_says_so(work, tmp_path):
    assert run(*flags(work, tmp_path / "run", "--max-steps", 2)).exit_code == 0
    done = run("--resume", tmp_path / "run", "--max-steps", 4)
    assert done.exit_code == 0, done.output
    assert "The linear schedule now spans all 4 steps: step 3 has 2.50e-04" in done.output


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], ["is finished", "a higher --epochs or --max-steps", "--output"]),
        (["--epochs", 1], ["is finished"]),
        (["--max-steps", 5], ["has taken 8 steps", "training.max_steps=5 ends it at step 5", "give more"]),
        (["--max-steps", 8], ["has taken 8 steps", "training.max_steps=8"]),
    ],
)
def test_a_finished_run_without_a_later_end_is_refused_with_what_would_go_on(more, words, copy):
    before = (copy / "record.jsonl").read_bytes()
    done = run("--resume", copy, *more)
    assert done.exit_code == FINISHED, done.output
    assert all(word in done.output for word in words), done.output
    assert (copy / "record.jsonl").read_bytes() == before
    assert run("--resume", copy, "--epochs", 1.25).exit_code == 0, "what a refusal advises works"


@pytest.mark.parametrize("setting", ["batch.global_batch_size=0", "engine.offload_parameters=cpu"])
def test_settings_that_cannot_be_are_all_that_is_told_of_a_run_that_was_to_go_on(setting, copy):
    done = run("--resume", copy, "--epochs", 2, "--set", setting)
    assert done.exit_code == 2, done.output
    assert "holds a run" not in done.output


def test_another_cut_and_precision_are_taken_up_from_flags(copy):
    done = run("--resume", copy, "--max-steps", 9, "--micro-batch-size", 2, "--precision", "bf16")
    assert done.exit_code == 0, done.output
    run_line = read_record(copy).run
    assert (run_line.precision, run_line.config["batch"]["micro_batch_size"]) == ("bf16", 2)


def test_a_run_that_stopped_early_goes_on_with_more_patience(work, tmp_path):
    impatient = ["--early-stopping-patience", 1, "--eval-every", 1, "--set", "training.checkpoint_every=1"]
    worse = ["--learning-rate", 1.0, "--warmup-steps", 0]
    done = run(*flags(work, tmp_path / "run", *impatient, *worse))
    assert done.exit_code == 0, done.output
    assert read_record(tmp_path / "run").result.status == "stopped early"
    refused = run("--resume", tmp_path / "run", "--epochs", 5)
    assert refused.exit_code == FINISHED
    assert "early_stopping_patience is 1; to train it for longer, raise that too" in refused.output
    again = run("--resume", tmp_path / "run", "--early-stopping-patience", 100)
    assert again.exit_code == 0, again.output
    assert read_record(tmp_path / "run").result.status == "completed"


def test_the_same_command_with_more_epochs_trains_a_finished_run_for_longer(copy, work):
    more = flags(work, copy, "--resume", "auto", "--epochs", 1, *CONSTANT)
    done = run(*more)
    assert (done.exit_code, "is finished" in done.output) == (0, True), done.output
    done = run(*more, "--epochs", 1.25)
    assert done.exit_code == 0, done.output
    assert read_record(copy).result.num_steps == 10


def test_a_run_without_a_checkpoint_is_started_again_by_the_flag_that_is_named(copy, work):
    shutil.rmtree(copy / "checkpoints")
    refused = run("--resume", copy, "--epochs", 2)
    assert refused.exit_code == FINISHED
    assert "start it again with --overwrite" in " ".join(refused.output.split())


def test_a_change_of_a_library_is_told(copy):
    state = next((copy / "checkpoints").glob("step-*8")) / "state.json"
    change(state, lambda raw: raw["versions"].update(ftkit="0.0.1"))
    done = run("--resume", copy, "--epochs", 1.25)
    assert done.exit_code == 0, done.output
    assert "was written with ftkit 0.0.1 (now" in " ".join(done.output.split())


def change(state, how):
    """Change the state of a checkpoint as one that wrote it otherwise would have."""
    raw = json.loads(state.read_text())
    how(raw)
    state.write_text(json.dumps(raw))
    manifest = state.with_name("manifest.json")
    seals = json.loads(manifest.read_text())
    seals["state.json"] = {"bytes": state.stat().st_size, "sha256": hashlib.sha256(state.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(seals))
