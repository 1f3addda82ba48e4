"""Labels of every kind train, are scored, choose the best model, and are answered alike by plain libraries."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from sklearn import metrics

from ftkit.config.files import load_config
from ftkit.errors import ConfigError, ModelError
from ftkit.machine.process import ProcessContext
from ftkit.records.answers import answers_file, read_answers
from ftkit.training.loop import train_run
from tests.helpers import WORDS, Notes, save_tiny_model

KINDS = {
    "single": lambda words: "good" if "good" in words else "bad" if "bad" in words else "neither",
    "multi": lambda words: [name for name in ("film", "good", "plot") if name in words],
    "regression": lambda words: 20.25 + 3 * ("good" in words) - 4 * ("bad" in words) + len(words) / 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), "bert")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """For each kind a folder of three splits."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("texts")
    for split, size in (("train", 48), ("validation", 16), ("test", 16)):
        rows = [random.choice(WORDS, size=random.integers(1, 9)).tolist() for _ in range(size)]
        for kind, label in KINDS.items():
            (folder / kind).mkdir(exist_ok=True)
            lines = [json.dumps({"text": " ".join(words), "label": label(words)}) for words in rows]
            (folder / kind / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def run(model, data, folder, *settings, resume=False):
    told = Notes()
    every = [
        *(
            f"model.name={model}",
            f"data.dataset={data}",
            f"output.folder={folder}",
            "model.precision=fp32",
            "output.reopen=false",
        ),
        *("training.epochs=4", "training.plan_first=false", "training.log_every=1", "batch.global_batch_size=8"),
        "optimizer.learning_rate=0.01",
    ]
    record = train_run(load_config(settings=[*every, *settings]), ProcessContext(), told, resume=resume)
    return record, "\n".join(told.said)


def answers(folder, monkeypatch):
    """Run the card's program, and the model that it loads on every text of the test split, one by one; its logits."""
    monkeypatch.chdir(folder)
    card = Path("README.md").read_text()
    loaded: dict = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], loaded)
    model, tokenizer = loaded["model"].eval(), loaded["tokenizer"]
    data = yaml.safe_load(Path("config.yaml").read_text())["data"]["dataset"]
    rows = [json.loads(line) for line in (Path(data) / "test.jsonl").read_text().splitlines()]
    with torch.no_grad():
        logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in rows]
    return model.config, torch.stack(logits), [row["label"] for row in rows], card


def kept_answers(folder, record, logits):
    """Check the answers that a run kept against its record and the logits of the test split."""
    kept, line = read_answers(answers_file(folder, "test")), record.last_evaluation("test")
    assert (len(kept), kept.step, kept.kind) == (16, record.result.best_step, record.run.labels.kind)
    assert len(read_answers(answers_file(folder, "validation"))) == 16
    if kept.kind == "single":
        assert line.accuracy == kept.is_right.mean()
        np.testing.assert_allclose(kept.probabilities, logits.softmax(-1), atol=1e-5)
    elif kept.kind == "multi":
        assert line.exact_match == kept.is_right.mean()
        np.testing.assert_allclose(kept.probabilities, logits.sigmoid(), atol=1e-5)
    else:
        assert line.mae == pytest.approx(np.abs(kept.labels - kept.answers).mean())
    assert set(kept.shown) == set(np.flatnonzero(~kept.is_right).tolist())
    assert all(shown.where.startswith(kept_file(record)) for shown in kept.shown.values())


def kept_file(record):
    return f"{record.run.config['data']['dataset']}/test.jsonl"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_class_is_scored_as_plain_libraries_do(method, model, texts, tmp_path, monkeypatch):
    record, _ = run(model, texts / "single", tmp_path, f"method.name={method}")
    config, logits, labels, card = answers(tmp_path, monkeypatch)
    scores = record.last_evaluation("test")
    numbers = {name: number for number, name in config.id2label.items()}
    true = torch.tensor([numbers[label] for label in labels])
    assert config.problem_type == "single_label_classification"
    assert scores.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, true)), rel=1e-4)
    assert scores.accuracy == metrics.accuracy_score(true, logits.argmax(-1))
    assert "| good |" in card
    kept_answers(tmp_path, record, logits)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_several_labels_are_scored_as_plain_libraries_do(method, model, texts, tmp_path, monkeypatch):
    settings = [f"method.name={method}", "training.best_metric=f1_micro", "training.early_stopping_patience=9"]
    record, said = run(model, texts / "multi", tmp_path, *settings)
    config, logits, labels, card = answers(tmp_path, monkeypatch)
    assert (config.problem_type, list(config.id2label.values())) == (
        "multi_label_classification",
        ["film", "good", "plot"],
    )
    true = torch.tensor([[float(name in label) for name in config.id2label.values()] for label in labels])
    scores = record.last_evaluation("test")
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, true)
    assert scores.loss == pytest.approx(float(loss), rel=1e-4)
    assert scores.exact_match == metrics.accuracy_score(true, logits > 0)
    assert scores.f1_micro == pytest.approx(metrics.f1_score(true, logits > 0, average="micro"))
    assert "above 0" in card
    assert "any of 3 labels" in said
    kept_answers(tmp_path, record, logits)
    assert best_is(record, "f1_micro", max)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("standardize", [False, True])
def test_numbers_are_scored_as_plain_libraries_do(method, standardize, model, texts, tmp_path, monkeypatch):
    settings = [f"method.name={method}", "training.best_metric=rmse", f"data.standardize_targets={standardize}"]
    record, _ = run(model, texts / "regression", tmp_path, *settings, "optimizer.learning_rate=0.002")
    config, logits, labels, card = answers(tmp_path, monkeypatch)
    assert (config.problem_type, config.num_labels) == ("regression", 1)
    predicted, scores = logits[:, 0].double().numpy(), record.last_evaluation("test")
    if standardize:
        predicted = eval(re.search(r"`(logit .*?)`", card)[1], {"logit": predicted})
        assert record.run.labels.deviation != 1
    assert scores.rmse == pytest.approx(metrics.root_mean_squared_error(labels, predicted), rel=1e-4)
    # Predictions that hardly differ carry their rounding, which is relative to their size, into the correlation.
    rounding = torch.finfo(torch.float32).eps * abs(predicted).max() / predicted.std()
    assert scores.pearson == pytest.approx(stats.pearsonr(labels, predicted).statistic, abs=10 * rounding)
    assert best_is(record, "rmse", min)
    kept_answers(tmp_path, record, logits)


def best_is(record, metric, best):
    lines = [line for line in record.evaluations if line.split == "validation"]
    return getattr(next(line for line in lines if line.step == record.result.best_step), metric) == best(
        getattr(line, metric) for line in lines
    )


def test_standardised_numbers_are_learned_where_numbers_far_from_zero_are_not(model, texts, tmp_path):
    plain, _ = run(model, texts / "regression", tmp_path / "plain", "method.name=feature-extraction")
    standard, _ = run(
        model,
        texts / "regression",
        tmp_path / "standard",
        "method.name=feature-extraction",
        "data.standardize_targets=true",
    )
    assert standard.last_evaluation("test").rmse < plain.last_evaluation("test").rmse / 3


def test_only_the_proportions_of_class_weights_count(model, texts, tmp_path):
    losses = []
    for number, weight in enumerate((0.001, 1, 50)):
        named = f"training.class_weights={{good: {weight}, bad: {weight}, neither: {weight}}}"
        record, _ = run(model, texts / "single", tmp_path / str(number), "method.name=full", named)
        losses.append([line.loss for line in record.steps])
    for found in losses[1:]:
        assert found == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("size", [1, 8])
def test_balanced_weights_are_said_and_kept_as_numbers_that_give_the_same_losses_in_any_cut(
    size, model, texts, tmp_path
):
    settings = ["training.class_weights=balanced", "method.name=full", f"batch.micro_batch_size={size}"]
    whole, said = run(model, texts / "single", tmp_path / "whole", *settings)
    assert re.search(r"class weights: bad [\d.]+, good [\d.]+, neither [\d.]+", said)
    kept = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["training"]["class_weights"]
    assert sorted(kept) == ["bad", "good", "neither"]
    named = f"training.class_weights={json.dumps(kept)}"
    again, _ = run(model, texts / "single", tmp_path / "again", "method.name=full", "batch.micro_batch_size=3", named)
    found, wanted = ([line.loss for line in record.steps] for record in (again, whole))
    assert found == pytest.approx(wanted, rel=1e-4)  # Adam's roots spread what fp32 sums differ in


def test_a_head_of_another_kind_is_refused_or_drawn_anew_on_request(model, texts, tmp_path):
    run(model, texts / "multi", tmp_path / "first", "method.name=full", "training.max_steps=1")
    trained = tmp_path / "first" / "model"
    single = tmp_path / "single"
    single.mkdir()
    for split in ("train", "test"):
        rows = [json.dumps({"text": name, "label": name}) for name in ("film", "good", "plot") for _ in range(4)]
        (single / f"{split}.jsonl").write_text("\n".join(rows))
    settings = ["method.name=full", "training.max_steps=1", "data.validation_share=0"]
    with pytest.raises(ModelError, match=r"trained for several labels, .* one class; .*new_head=true"):
        run(trained, single, tmp_path / "second", *settings)
    record, _ = run(trained, single, tmp_path / "third", *settings, "model.new_head=true")
    assert record.run.labels.kind == "single"


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_of_another_kind_cannot_choose_the_best_model(kind, model, texts, tmp_path):
    metric = "accuracy" if kind == "regression" else "spearman"
    with pytest.raises(ConfigError, match=f"training.best_metric={metric} is not a score of"):
        run(model, texts / kind, tmp_path, f"training.best_metric={metric}")
