"""A run pads where its model needs it, or takes sequences one at a time and says so; the cut never shows."""

import csv

import pytest
from transformers import AutoTokenizer

from ftkit.config.files import load_config
from ftkit.machine.process import ProcessContext
from ftkit.training.loop import train_run
from tests.helpers import WORDS, Notes, save_tiny_model


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(24):
            words = [WORDS[(number * 7 + place * 5) % len(WORDS)] for place in range(1 + number % 9)]
            writer.writerow([" ".join(words), "good" if "good" in words else "bad"])
    return path


def run(model, texts, folder, size, *settings):
    told = Notes()
    every = [
        *(
            f"model.name={model}",
            f"data.dataset={texts}",
            f"output.folder={folder}",
            "method.name=full",
            "output.reopen=false",
        ),
        *("model.precision=fp32", "training.epochs=1", "training.plan_first=false", "training.log_every=1"),
        *("batch.global_batch_size=8", f"batch.micro_batch_size={size}", "optimizer.learning_rate=0.01"),
    ]
    record = train_run(load_config(settings=[*every, *settings]), ProcessContext(), told)
    losses = [line.loss for line in record.steps] + [line.loss for line in record.evaluations]
    return losses, record, "\n".join(told.said)


@pytest.mark.parametrize("family", ["xlnet", "fnet", "bert"])
def test_losses_and_scores_do_not_depend_on_the_cut(family, texts, tmp_path):
    model = save_tiny_model(tmp_path / "model", family)
    one, record, _ = run(model, texts, tmp_path / "one", 1)
    many, whole, said = run(model, texts, tmp_path / "many", 8)
    assert many == pytest.approx(one, rel=2e-5)  # Adam's roots spread what fp32 sums differ in
    assert ("padding: on the left" in said) == (family == "xlnet")
    assert ("run one at a time (model.padding=right" in said) == (family == "fnet")
    assert record.run.config["batch"]["micro_batch_size"] == 1
    assert whole.run.config["batch"]["micro_batch_size"] == (1 if family == "fnet" else 8)


def test_the_saved_tokenizer_pads_on_the_side_that_the_model_needs(texts, tmp_path):
    model = save_tiny_model(tmp_path / "model", "xlnet")
    run(model, texts, tmp_path / "out", 8)
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "model").padding_side == "left"


def test_a_side_that_is_named_is_taken_as_it_is(texts, tmp_path):
    model = save_tiny_model(tmp_path / "model", "fnet")
    _, record, said = run(model, texts, tmp_path / "right", 8, "model.padding=right")
    assert record.run.config["batch"]["micro_batch_size"] == 8
    assert "padding" not in said
    _, record, said = run(model, texts, tmp_path / "none", 8, "model.padding=none")
    assert record.run.config["batch"]["micro_batch_size"] == 1
    assert "padding" not in said
