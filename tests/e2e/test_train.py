"""`ftkit train` as a user runs it, on tiny models and files."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sklearn.metrics import accuracy_score, f1_score

from ftkit.config.files import load_config
from ftkit.machine import hardware
from ftkit.models.build import build_empty_model
from ftkit.models.kernels.unpadded import is_unpadded
from ftkit.plan.inputs.architectures import find_architecture
from ftkit.plan.needs.bare import RUNTIME_BYTES
from ftkit.records.files import read_record
from ftkit.records.schema import Basis
from tests.e2e.command import QUICK, flags, run
from tests.helpers import WORDS
from tests.made_gguf import write_gguf

pytestmark = pytest.mark.e2e


def losses(folder):
    return {line.step: line.loss for line in read_record(folder).steps}


@pytest.fixture(scope="module")
def trained(work):
    """A run of a model that drops out in its attention, as most encoders do."""
    model = shutil.copytree(work / "bert", work / "bert-with-dropout")
    fields = json.loads((model / "config.json").read_text()) | {"attention_probs_dropout_prob": 0.1}
    (model / "config.json").write_text(json.dumps(fields))
    done = run(*flags(work, work / "out", "--model", model, "--learning-rate", 0.01))
    assert done.exit_code == 0, done.output
    return work / "out", done


def test_a_run_learns_scores_and_leaves_a_whole_result_folder(trained):
    folder, done = trained
    record = read_record(folder)
    assert record.result.status == "completed"
    assert record.last_evaluation("test").accuracy > 0.9
    assert record.result.measurement.peak_process_bytes > 2**20
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.yaml", "record.jsonl", "checkpoints", "model", "README.md"}
    assert "Labels: no, yes." in (folder / "README.md").read_text()
    assert str(folder / "model") in done.output


def test_its_layers_ran_without_padding(trained):
    config = load_config(trained[0] / "config.yaml")
    assert is_unpadded(build_empty_model(config, find_architecture(config), torch.float32))


def test_the_saved_model_predicts_with_plain_peft_what_the_record_says(trained, work):
    from peft import PeftModel

    folder, _ = trained
    base = transformers.AutoModelForSequenceClassification.from_pretrained(work / "bert", num_labels=2)
    model = PeftModel.from_pretrained(base, folder / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    texts = ["good film", "bad film", "the plot of one good actor", "not a bad scene"]
    found = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(-1).tolist()
    assert found == [1, 0, 1, 0]  # label names are sorted: no, yes


@pytest.mark.parametrize(
    ("method", "family"), [("lora", "gpt2"), ("qlora", "gpt2"), ("qlora", "bert"), ("full", "llama")]
)
def test_the_program_on_the_card_loads_the_model_as_it_was_scored(method, family, work, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    done = run(*flags(work, folder, "--model", work / family, "--method", method, "--learning-rate", 0.01))
    assert done.exit_code == 0, done.output
    assert read_record(folder).last_evaluation("test").accuracy > 0.9
    program = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(program, names)
    texts = ["good film", "bad film", "the plot of one good actor", "not a bad scene"]  # of three lengths, so padded
    model = names["model"].eval()
    found = model(**names["tokenizer"](texts, padding=True, return_tensors="pt")).logits.argmax(-1).tolist()
    assert [model.config.id2label[number] for number in found] == ["yes", "no", "yes", "no"]


def test_the_scores_are_those_of_scikit_learn(trained):
    scores = read_record(trained[0]).last_evaluation("test")
    pairs = [(t, p) for t, row in enumerate(scores.confusion) for p, count in enumerate(row) for _ in range(count)]
    true, predicted = zip(*pairs, strict=True)
    assert scores.accuracy == pytest.approx(accuracy_score(true, predicted))
    assert scores.f1_macro == pytest.approx(f1_score(true, predicted, average="macro"))
    assert scores.f1_weighted == pytest.approx(f1_score(true, predicted, average="weighted"))


def test_the_run_was_planned_and_the_plan_is_in_its_record(trained):
    record = read_record(trained[0])
    assert "plan: fits" in trained[1].output
    prediction = record.run.prediction
    assert prediction.fits
    assert prediction.basis is Basis.TRACED_WHOLE  # a model of two layers has none that stand for others
    assert prediction.num_trainable_parameters == record.result.measurement.num_trainable_parameters
    assert prediction.num_steps == record.run.num_steps


def test_the_record_says_what_the_folder_holds_and_how_busy_the_device_was(trained):
    folder, _ = trained
    record = read_record(folder)
    measured, prediction = record.result.measurement, record.run.prediction
    files = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    kept = [size for file, size in files.items() if {"checkpoints", "model"} & set(file.parts)]
    assert sum(kept) <= measured.disk_bytes <= sum(files.values())
    share = measured.tokens_per_second / prediction.tokens_per_second
    assert measured.model_flops_utilization == pytest.approx(share * prediction.model_flops_utilization)


@pytest.fixture
def small_machine(monkeypatch):
    """A machine with room for a process and few sequences of the tiny model."""
    machine = hardware.this_machine()
    little = dataclasses.replace(machine, memory_bytes=RUNTIME_BYTES + 3 * 2**20)
    monkeypatch.setattr("ftkit.plan.inputs.target.this_machine", lambda: little)
    monkeypatch.setattr("ftkit.plan.preflight.resident_bytes", lambda: None)  # this process has all tests in it


def test_what_is_predicted_not_to_fit_is_refused_with_a_cure_that_works(work, small_machine):
    more = ["--max-steps", 2, "--global-batch-size", 64, "--micro-batch-size", 32]
    refused = run(*flags(work, work / "refused", *more))
    assert refused.exit_code == 8
    assert "Traceback" not in refused.output
    assert not (work / "refused").exists()
    cure = re.search(r"what would fit: (--\S+) (\S+)", refused.output).groups()
    done = run(*flags(work, work / "cured", *more, *cure))
    assert done.exit_code == 0, done.output
    assert read_record(work / "cured").run.prediction.fits


def test_no_plan_trains_what_would_be_refused_to_the_same_losses(work, small_machine, monkeypatch):
    more = ["--max-steps", 2, "--global-batch-size", 64, "--set", "training.log_every=1"]
    assert run(*flags(work, work / "unplanned", *more, "--no-plan")).exit_code == 0
    assert read_record(work / "unplanned").run.prediction is None
    monkeypatch.undo()
    assert run(*flags(work, work / "planned", *more)).exit_code == 0
    assert losses(work / "planned") == losses(work / "unplanned")


def test_auto_takes_micro_batches_that_fit(work, small_machine):
    more = ["--max-steps", 2, "--global-batch-size", 64, "--micro-batch-tokens", "auto"]
    done = run(*flags(work, work / "auto", *more))
    assert done.exit_code == 0, done.output
    run_line = read_record(work / "auto").run
    assert isinstance(run_line.config["batch"]["micro_batch_tokens"], int)
    assert run_line.prediction.fits
    assert 1 <= run_line.prediction.micro_batch_size < 64


def test_a_filled_folder_is_not_overwritten_unless_asked(trained, work):
    again = run(*flags(work, trained[0]))
    assert again.exit_code == 2
    assert "holds a run" in again.output
    assert read_record(trained[0]).result is not None


def test_a_run_killed_without_warning_goes_on_as_if_never_stopped(work):
    """The data has 8 steps an epoch; the process is killed once its first checkpoint is there."""
    whole, cut = work / "whole", work / "cut"
    more = [
        "--set",
        "training.checkpoint_every=5",
        "--set",
        "model.gradient_checkpointing=1",
        "--set",
        "method.dropout=0.1",
    ]
    assert run(*flags(work, whole, *more)).exit_code == 0
    code = "from ftkit.cli import main; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "train", *map(str, flags(work, cut, *more))], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((cut / "checkpoints").glob("step-*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.wait()
    resumed = run("--resume", cut)
    assert resumed.exit_code in (0, 5), resumed.output
    if resumed.exit_code == 5:  # it was quicker than the kill
        pytest.skip("the run ended before it was killed")
    assert losses(cut) == losses(whole)


@pytest.fixture(scope="module")
def plain_losses(work):
    assert run(*flags(work, work / "plain", "--learning-rate", 0.01, "--max-steps", 6)).exit_code == 0
    return losses(work / "plain")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_process_under_zero_gives_the_losses_of_the_plain_engine(stage, plain_losses, work):
    folder = work / f"zero{stage}"
    done = run(*flags(work, folder, "--learning-rate", 0.01, "--zero-stage", stage, "--max-steps", 6))
    assert done.exit_code == 0, done.output
    assert read_record(folder).run.engine == "deepspeed"
    assert losses(folder) == pytest.approx(plain_losses, rel=1e-6)
    assert "LOCAL_RANK" not in os.environ  # DeepSpeed wanted it; whoever runs next in this process does not


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/include/libaio.h").exists(), reason="offload to NVMe compiles against libaio-dev")
def test_weights_and_moments_on_a_disk_give_the_losses_of_the_plain_engine(work):
    """The first start compiles CPU Adam and asynchronous I/O for up to five minutes."""
    start = ["--method", "full", "--learning-rate", 0.01, "--max-steps", 6]
    disk = ["--offload-optimizer", "nvme", "--offload-parameters", "nvme", "--set", f"engine.nvme_path={work / 'disk'}"]
    for name, more in (("on-disk", ["--zero-stage", 3, *disk]), ("in-memory", [])):
        # In a process of its own: DeepSpeed asks the true standard error of a process whether a function links.
        code = "from ftkit.cli import main; main()"
        command = [sys.executable, "-c", code, "train", *map(str, flags(work, work / name, *start, *more))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert losses(work / "on-disk") == pytest.approx(losses(work / "in-memory"), rel=1e-5)  # CPU Adam fuses its sums


@pytest.mark.parametrize("stops", [1, 2])
def test_a_run_that_stops_early_stops_at_the_validation_that_was_one_too_many(stops, work):
    more = ["--early-stopping-patience", stops, "--learning-rate", 0.5, "--eval-every", 2]
    done = run(*flags(work, work / f"early-{stops}", *more))
    assert done.exit_code == 0, done.output
    record = read_record(work / f"early-{stops}")
    validations = [line.step for line in record.evaluations if line.split == "validation"]
    assert record.result.num_steps == validations[-1]
    assert validations.index(record.result.best_step) == len(validations) - 1 - stops


def test_training_stops_early_and_keeps_the_best_model(work):
    done = run(*flags(work, work / "early", "--early-stopping-patience", 1, "--learning-rate", 0.5, "--eval-every", 2))
    assert done.exit_code == 0, done.output
    record = read_record(work / "early")
    assert record.result.status == "stopped early"
    assert record.result.num_steps < record.run.num_steps
    best = min((line for line in record.evaluations if line.split == "validation"), key=lambda line: line.loss)
    assert record.result.best_step == best.step


def test_a_language_model_trains_on_completions_and_reports_its_perplexity(work):
    prompts = [f"the {one} {other}" for one in WORDS for other in WORDS[:8]]
    rows = [json.dumps({"prompt": prompt, "completion": "very good"}) for prompt in prompts]
    (work / "pairs.jsonl").write_text("\n".join(rows))
    arguments = ["--model", work / "llama", "--dataset", work / "pairs.jsonl", "--task", "causal-lm", "--epochs", 4]
    settings = ["--set", "data.test_share=0", "--precision", "fp32", "--output", work / "lm", "--global-batch-size", 8]
    settings += QUICK
    done = run(*arguments, *settings, "--method", "full", "--learning-rate", 0.01)
    assert done.exit_code == 0, done.output
    assert read_record(work / "lm").last_evaluation("validation").perplexity < 1.5


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_a_gguf_file_trains_and_its_adapter_loads_plainly(task, work, tmp_path, monkeypatch):
    from gguf import GGMLQuantizationType
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification

    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)
    more = ["--model", tmp_path / "tiny.gguf", "--task", task, "--max-steps", 4, "--max-length", 32]
    done = run(*flags(work, tmp_path / "out", *more))
    assert done.exit_code == 0, done.output
    assert done.output.count("converting tiny.gguf") == 1
    kind = AutoPeftModelForCausalLM if task == "causal-lm" else AutoPeftModelForSequenceClassification
    extra = {} if task == "causal-lm" else {"num_labels": 2}
    model = kind.from_pretrained(tmp_path / "out" / "model", **extra)
    assert str(tmp_path / "cache") in model.peft_config["default"].base_model_name_or_path
    again = run(*flags(work, tmp_path / "again", *more))
    assert "converting" not in again.output
    assert losses(tmp_path / "again") == losses(tmp_path / "out")


def figures_of(file):
    """Read what TensorBoard's files hold: frames of (length, its checksum, an event, its checksum)."""
    from tensorboardX.proto.event_pb2 import Event

    data = file.read_bytes()
    found: dict[tuple[str, int], float] = {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[12 + length + 4 :]
    return found


def test_a_tracker_is_told_the_figures_of_the_record(work):
    done = run(*flags(work, work / "tracked", "--max-steps", 4, "--tracker", "tensorboard"))
    assert done.exit_code == 0, done.output
    record = read_record(work / "tracked")
    told: dict[tuple[str, int], float] = {}
    for file in (work / "tracked" / "tracking").rglob("events*"):
        told |= figures_of(file)
    left = [line.seconds_left for line in record.steps]
    assert all(left)
    assert left[0] > left[-1], "it counts what is still to come"
    for line in record.steps:
        assert told["train/loss", line.step] == pytest.approx(line.loss)
        assert told["train/tokens_per_second", line.step] == pytest.approx(line.tokens_per_second)
    assert told["test/accuracy", 4] == pytest.approx(record.last_evaluation("test").accuracy)
    assert told["run/peak_process_bytes", 4] == pytest.approx(record.result.measurement.peak_process_bytes)


def test_a_tracker_whose_package_is_missing_stops_before_anything_trains(work):
    done = run(*flags(work, work / "untracked", "--tracker", "tensorboard,clearml"))
    assert done.exit_code != 0
    assert "pip install clearml" in done.output
    assert "Traceback" not in done.output
    assert not (work / "untracked").exists()


@pytest.mark.parametrize("preset", ["gpt2-feature-extraction", "gpt2-lora-mlp", "gpt2-lora-wished"])
def test_a_preset_of_gpt2_runs_on_a_tiny_one(preset, work):
    """Conv1D and all; fp16 is refused on a CPU, so that one preset gets another precision."""
    more = ["--model", work / "gpt2", "--dataset", work / "texts.csv", "--precision", "fp32"]
    done = run("--preset", preset, *QUICK, *more, "--output", work / preset)
    assert done.exit_code == 0, done.output
    record = read_record(work / preset)
    assert (
        record.result.num_steps
        == record.run.num_steps
        == 5 * -(-128 // record.run.config["batch"]["global_batch_size"])
    )
    assert ("500 of" in done.output) == (preset != "gpt2-lora-wished")  # a warm-up longer than the run is warned of


def test_json_prints_the_record_and_nothing_else(work):
    done = run(*flags(work, work / "json", "--max-steps", 2, "--json"))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["result"]["num_steps"] == 2


def test_a_warm_up_above_a_third_of_the_steps_and_a_setting_that_does_nothing_are_warned_of(work):
    done = run(*flags(work, work / "warm", "--max-steps", 4, "--warmup-steps", 3, "--eval-every", 50))
    assert "3 of 4 steps warm up, more than a third" in done.output
    assert "warning: training.eval_every=50 is never reached: the run has 4 steps" in done.output


def test_a_loss_that_is_no_number_stops_the_run_with_a_sentence(work):
    done = run(*flags(work, work / "nan", "--method", "full", "--learning-rate", 1e30))
    assert done.exit_code == 9
    assert "give a --learning-rate below" in done.output
