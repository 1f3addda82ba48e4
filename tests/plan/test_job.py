"""The plan of a whole job: its parts add up, and follow the data, the validations and what is kept."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.cli.plan.asked import _read
from ftkit.config.files import load_config
from ftkit.config.tree import RunConfig
from ftkit.data.prepare import check_rows
from ftkit.models.methods.lora import Lora
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.job import with_job
from ftkit.plan.predict import predict
from ftkit.plan.seconds.calibration import Calibration, fingerprint, keep
from ftkit.plan.seconds.speed import Device
from tests.helpers import WORDS, save_tiny_model
from tests.plan import models

SEQUENCES = Sequences(
    960, 128, are_equal=False, num_all=1200, all_tokens=30_000, validation_tokens=4_000, test_tokens=2_000,
    lengths=(24, 26) * 40,
)  # fmt: skip


@pytest.fixture(scope="module")
def planned():
    """A run of three epochs of 30 steps, and its plan."""
    config = models.run_config("bert", Lora(), batch={"global_batch_size": 32, "micro_batch_tokens": 1024})
    return config, predict(config, find_target("t4"), models.architecture("bert"), sequences=SEQUENCES)


def job(planned, sequences=SEQUENCES, target=None, **training):
    config, prediction = planned
    tree = config.model_dump() | {"training": config.training.model_dump() | training}
    found = with_job(prediction, RunConfig.model_validate(tree), target or find_target("t4"), sequences).job
    assert found is not None
    return found


def test_the_parts_add_up_to_the_time_and_the_bytes(planned):
    found = job(planned)
    parts = (found.start_seconds, found.data_seconds, found.trunk_seconds, found.steps_seconds)
    assert found.seconds == pytest.approx(sum(parts) + found.evaluation_seconds + found.save_seconds)
    assert found.num_bytes == found.checkpoint_bytes + found.result_bytes + found.cache_bytes
    _, prediction = planned
    beside = found.checkpoint_bytes + found.result_bytes - prediction.disk_bytes
    assert 2_700_000 <= beside < 3_500_000  # MiniLM's tokenizer has 0.7 MB, the page of a run 2.0, a record some KB
    assert found.cache_bytes == 4 * 30_000  # tokens


def test_weights_are_read_and_results_written_at_the_rates_of_the_disk_that_was_measured(
    planned, tmp_path, monkeypatch
):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    slow, here = job(planned), replace(find_target("t4"), name="Tesla T4")
    device = Device(1e9, 1e9, 1e9, 1e-6, True)
    keep(Calibration("2026-11-26", fingerprint("Tesla T4"), device, disk_read=200 * 2**30, disk_write=200 * 2**20))
    found = job(planned, target=here)
    loading = slow.start_seconds - 8  # beside libraries
    assert found.start_seconds == pytest.approx(8 + loading / 1024)
    assert slow.save_seconds - found.save_seconds == pytest.approx(loading * 1023 / 1024)  # the result is opened again


def test_steps_are_of_the_lengths_of_the_data_and_evaluations_are_forwards(planned):
    found, (_, prediction) = job(planned), planned
    assert prediction.num_steps == 90
    # A worst step has four micro-batches of 8 x 128 tokens, and a usual step one of 32 x 26.
    assert 1 / 5 < found.steps_seconds / (90 * prediction.step_seconds) < 1 / 3
    assert (found.num_validations, found.num_checkpoints) == (3, 3)
    assert found.evaluation_seconds == pytest.approx((3 * 4_000 + 2_000) / prediction.evaluation_tokens_per_second)
    unscored = job(planned, score_test=False)
    assert unscored.evaluation_seconds == pytest.approx(3 * 4_000 / prediction.evaluation_tokens_per_second)
    # Forward and backward are about three forwards of work, and on a GPU the host waits for neither.
    assert 1.5 < prediction.evaluation_tokens_per_second / prediction.tokens_per_second < 5


def test_validations_and_checkpoints_follow_their_intervals(planned):
    found = job(planned, eval_every=20, checkpoint_every=50)
    assert (found.num_validations, found.num_checkpoints) == (5, 2)
    assert found.evaluation_seconds > job(planned).evaluation_seconds
    assert found.save_seconds < job(planned).save_seconds


def test_a_short_run_keeps_the_one_checkpoint_that_it_writes(planned):
    config, prediction = planned
    short = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 1.0})})
    one = predict(short, find_target("t4"), models.architecture("bert"), sequences=SEQUENCES)
    # The second checkpoint had masters and two moments, and it may have referred to the masters of another best.
    assert config.training.keep_checkpoints == 2
    assert prediction.disk_bytes - one.disk_bytes == one.num_trainable_parameters * (12 + 4)


def test_a_run_that_plans_knows_how_long_it_took_to_read_its_data_and_to_look_at_the_processor(planned):
    config, prediction = planned
    asked, begun = job(planned), with_job(prediction, config, find_target("t4"), SEQUENCES, so_far=100.0).job
    loading = asked.start_seconds - 8
    assert begun.start_seconds == pytest.approx(100 + 3.5 + loading)
    assert begun.data_seconds == 0.0
    assert asked.data_seconds > 0
    assert begun.seconds - begun.start_seconds == pytest.approx(
        asked.seconds - asked.start_seconds - asked.data_seconds
    )


def test_under_a_launcher_the_result_is_opened_by_a_fresh_process(planned):
    alone = find_target("cpu")
    launched = replace(alone, launcher="deepspeed")
    assert job(planned, target=launched).save_seconds - job(planned, target=alone).save_seconds == pytest.approx(3.0)


def test_what_is_not_known_of_the_data_leaves_no_figure(planned):
    found = job(planned, Sequences.unseen(planned[0]))
    assert found.seconds is None
    assert found.num_bytes is None


def test_a_dataset_that_is_named_is_read_for_its_size_and_its_lengths(tmp_path):
    model = save_tiny_model(tmp_path / "bert", "bert")
    rows = [f"{WORDS[number % 15]} {WORDS[number % 7]} {number},{'ab'[number % 2]}" for number in range(100)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]))
    ran = CliRunner().invoke(main, ["plan", "--model", str(model), "--dataset", str(tmp_path / "texts.csv")])
    assert ran.exit_code == 0, ran.output
    assert "sequences of 5 tokens" in ran.output
    assert "for 9 steps" in ran.output  # 80 of 100 texts, three epochs of 32 at a time
    ran = CliRunner().invoke(main, ["plan", "--model", "gpt2", "--gpu", "t4", "--dataset", str(tmp_path / "texts.csv")])
    assert "80 texts to train on, each taken to have data.max_length=128 tokens" in ran.stderr


def test_the_splits_of_a_dataset_that_is_named_are_counted_and_not_taken_from_shares(tmp_path):
    for split, number in (("train", 40), ("validation", 10)):
        (tmp_path / f"{split}.csv").write_text(
            "\n".join(["text,label", *(f"{split} {n},{'ab'[n % 2]}" for n in range(number))])
        )
    config = RunConfig.model_validate(
        {"task": "sequence-classification", "model": {"name": "gpt2"}, "data": {"dataset": str(tmp_path)}}
    )
    found, longest = _read(config), config.data.max_length
    assert found.num_all == sum(check_rows(config.data, config.task, config.data_seed).values())
    # A tenth of the 40 is to be tested on; all of the 10 are there, whatever share would be cut off for them.
    assert (found.num, found.validation_tokens, found.test_tokens) == (36, 10 * longest, 4 * longest)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_whole_model_is_written_in_the_type_of_its_files_whatever_it_computes_in(tmp_path, kind):
    save_tiny_model(tmp_path, "bert")
    transformers.AutoModel.from_pretrained(tmp_path, dtype=kind).save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    facts.pop("dtype")  # as in the files of 2019
    (tmp_path / "config.json").write_text(json.dumps(facts))
    config = load_config(settings=[f"model.name={tmp_path}", "method=full", "model.precision=fp16"])
    prediction = predict(config, find_target("t4"))
    assert (
        prediction.result_bytes == prediction.source_bytes == prediction.num_parameters * getattr(torch, kind).itemsize
    )
