"""The head that is solved for is the optimum, and an ordinary model."""

import json
import re

import pytest
import torch
import transformers

from ftkit.records.files import read_record
from ftkit.report.collect import Run
from ftkit.report.words import method
from tests.e2e.command import flags, run
from tests.e2e.conftest import work
from tests.helpers import save_tiny_model

__all__ = ["work"]
LOGISTIC = ("--method", "feature-extraction", "--head", "logistic", "--no-plan")


def plain(output):
    return " ".join(output.split())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_saved_model_is_ordinary_and_its_logits_are_those_that_were_scored(family, work, tmp_path):
    output = tmp_path / "run"
    done = run(*flags(work, output, *LOGISTIC, "--model", work / family, "--set", "schedule.warmup_steps=10"))
    assert done.exit_code == 0, done.output
    assert "steps warm up" not in done.output, "there are no steps"
    assert re.search(
        r"logistic regression: the optimum .* penalty \S+, chosen by loss on validation", plain(done.output)
    )
    record = read_record(output)
    assert [line.split for line in record.evaluations] == ["validation", "test"]
    assert "head=logistic" in method(Run(output.name, record))

    model = transformers.AutoModelForSequenceClassification.from_pretrained(output / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(output / "model")
    texts = [line.rpartition(",")[0] for line in (work / "texts.csv").read_text().splitlines()[1:]]
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    given = logits.softmax(dim=-1)[:, 0]
    lines = (output / "answers" / "test.jsonl").read_text().splitlines()[1:]
    answered = torch.tensor([json.loads(line)["probabilities"][0] for line in lines])
    # fp32 beside other texts rounds otherwise; the texts' own probabilities are farther apart than that.
    assert (answered[:, None] - given).abs().min(dim=1).values.max() < 1e-4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trunk-cache", "off"], "solves for the head from the cache; leave out --trunk-cache off"),
        (["--method", "lora"], "unknown key 'method.head'"),
    ],
)
def test_what_cannot_be_solved_for_is_refused(more, said, work, tmp_path):
    done = run(*flags(work, tmp_path / "run", *LOGISTIC, *more))
    assert done.exit_code != 0
    assert said in plain(done.output)


def test_a_head_of_two_layers_is_refused_by_name(work, tmp_path):
    model = save_tiny_model(tmp_path / "roberta", "roberta")
    done = run(*flags(work, tmp_path / "run", *LOGISTIC, "--model", model))
    assert done.exit_code != 0
    assert "fits one linear layer, and the head of this model is classifier.dense, classifier.out_proj" in " ".join(
        done.output.split()
    )
