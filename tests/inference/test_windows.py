"""A model that was trained on windows answers new texts in windows, exactly as it was scored."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.config.files import load_config
from ftkit.machine.process import ProcessContext
from ftkit.records.answers import answers_file, read_answers
from ftkit.training.loop import train_run
from tests.helpers import WORDS, Notes, save_tiny_model

LABELS = {
    "single": lambda words: "good" if "good" in words else "other",
    "multi": lambda words: [name for name in ("film", "good") if name in words] or ["plot"],
    "regression": lambda words: 2.25 * len(words),
}
SPLITS = {"train": 24, "validation": 8, "test": 12}
CASES = [("single", "on"), ("single", "off"), ("multi", "off"), ("regression", "off")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.mark.parametrize(("kind", "cache"), CASES)
def test_predict_and_evaluate_give_what_was_recorded_of_texts_in_windows(kind, cache, model, tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    for split, size in SPLITS.items():
        rows = [draw.choice(WORDS, draw.integers(2, 30)).tolist() for _ in range(size)]
        lines = [json.dumps({"text": " ".join(words), "label": LABELS[kind](words)}) for words in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    run, test = tmp_path / "run", tmp_path / "test.jsonl"
    settings = {
        "model.name": model, "data.dataset": tmp_path, "data.max_length": 8, "data.long_texts": "windows",
        "output.folder": run, "output.reopen": "false", "training.max_steps": 3, "cache.trunk": cache,
        "training.plan_first": "false", "batch.global_batch_size": 8, "model.precision": "fp32",
        "method.name": "feature-extraction" if cache == "on" else "lora", "training.trial_step": "always",
    }  # fmt: skip
    reporter, config = Notes(), load_config(settings=[f"{key}={value}" for key, value in settings.items()])
    record = train_run(config, ProcessContext(), reporter)
    assert any("read in windows" in said for said in reporter.said)
    kept, line = read_answers(answers_file(run, "test")), record.last_evaluation("test")
    assert len(kept) == line.num_samples == SPLITS["test"]
    scored = json.loads(CliRunner().invoke(main, ["evaluate", str(run), "--json"]).stdout)
    assert scored["loss"] == pytest.approx(line.loss, rel=1e-5)
    done = CliRunner().invoke(main, ["predict", str(run), "--dataset", str(test), "--format", "jsonl"])
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    if kind == "regression":
        np.testing.assert_allclose([row["label"] for row in rows], kept.answers, rtol=1e-5)
        return
    shares = [[row[f"probability_{name}"] for name in kept.names] for row in rows]
    # fp32 logits of batches of other shapes differ in the last of 24 bits, those of a cached trunk too.
    np.testing.assert_allclose(shares, kept.probabilities, atol=1e-6)
