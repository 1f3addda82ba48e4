"""`ftkit train --memory-timeline`, and the sentence of `--memory-snapshot` where there is no CUDA."""

import random

import pytest
import torch
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.records.files import read_record
from tests.e2e.command import QUICK
from tests.helpers import WORDS, save_tiny_model

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A tiny BERT, and texts of eight words each, so that the worst batch that is planned is every batch."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny_model(folder / "bert", "bert")
    draw = random.Random(0)
    rows = [f"{' '.join(draw.choices(WORDS, k=8))},{number % 2}" for number in range(160)]
    (folder / "texts.csv").write_text("text,label\n" + "\n".join(dict.fromkeys(rows)) + "\n")
    return folder


def run(work, name, *more):
    base = ["--model", work / "bert", "--dataset", work / "texts.csv", "--output", work / name, "--max-steps", 3]
    return CliRunner().invoke(main, ["train", *QUICK, *map(str, [*base, "--global-batch-size", 16, *more])])


@pytest.mark.parametrize(
    "method",
    [
        ["--method", "feature-extraction"],
        ["--method", "lora", "--precision", "bf16"],
        ["--method", "full", "--precision", "fp32", "--micro-batch-size", 8],
        ["--method", "lora", "--gradient-checkpointing", "all"],
    ],
    ids=["features", "lora", "full", "checkpointing"],
)
def test_the_peak_of_the_timeline_of_a_training_step_is_the_planned_one_to_the_byte(work, method):
    name = "-".join(str(part).strip("-") for part in method)
    done = run(work, name, "--memory-timeline", *method)
    assert done.exit_code == 0, done.output
    record = read_record(work / name)
    line = record.timeline
    totals = [sum(parts) for parts in zip(*line.live_bytes.values(), strict=True)]
    peak = max(range(len(totals)), key=totals.__getitem__)
    assert totals[peak] == record.run.prediction.peak_active_bytes
    planned = record.run.prediction.peak_breakdown
    assert {kind: values[peak] for kind, values in line.live_bytes.items() if values[peak]} == {
        name.removesuffix("_bytes"): size for name, size in planned.model_dump().items() if size
    }
    assert line.step == 2
    assert {"forward", "backward", "optimizer"} <= set(line.phases)
    assert line.largest_tensors[0].module
    assert '"timeline":{"events"' in (work / name / "report.html").read_text(encoding="utf-8")


def test_looking_at_a_step_changes_nothing_of_it(work):
    losses = []
    for name, more in (("bare", []), ("watched", ["--memory-timeline"])):
        assert run(work, name, "--set", "training.log_every=1", *more).exit_code == 0
        losses.append([line.loss for line in read_record(work / name).steps])
    assert losses[0] == losses[1]
    assert read_record(work / "bare").timeline is None


def test_a_run_of_one_step_has_that_one_looked_at(work):
    assert run(work, "short", "--max-steps", 1, "--memory-timeline").exit_code == 0
    assert read_record(work / "short").timeline.step == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there a snapshot is written; tests/gpu has its test")
def test_a_snapshot_without_cuda_is_refused_in_a_sentence_before_anything_is_made(work):
    done = run(work, "snapshot", "--memory-snapshot")
    assert done.exit_code == 7
    assert "torch's record of its CUDA allocator" in done.output
    assert "--memory-timeline" in done.output
    assert not (work / "snapshot").exists()
