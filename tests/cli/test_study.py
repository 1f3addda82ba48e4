"""`ftkit study features`, as a user types it."""

import csv
import json

import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.records.study import StudyRecord
from tests.e2e.conftest import work

__all__ = ["work"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))


def study(work, output, *more):
    flags = ["--model", work / "bert", "--dataset", work / "texts.csv", "--output", output, "--precision", "fp32"]
    return CliRunner().invoke(main, ["study", "features", *map(str, [*flags, "--folds", 3, *more])])


def test_a_study_says_accuracy_curve_and_suspects_and_leaves_them_as_files(work, tmp_path):
    lines = (work / "texts.csv").read_text().splitlines()
    planted = list(range(10, 150, 14))
    for number in planted:
        text, _, label = lines[number].rpartition(",")
        lines[number] = f"{text},{'no' if label == 'yes' else 'yes'}"
    (tmp_path / "<b>texts.csv").write_text("\n".join(lines))
    done = study(work, tmp_path / "study", "--dataset", tmp_path / "<b>texts.csv")
    assert done.exit_code == 0, done.output
    assert "labels" in done.output
    found = StudyRecord.model_validate(json.loads((tmp_path / "study" / "study.json").read_text()))
    assert found.num_sequences == len(lines) - 1
    by_name = {one.name: one for one in found.contestants}
    assert by_name["TF-IDF"].accuracy > 0.8  # a word decides, but for those that were flipped
    assert by_name["largest class"].accuracy < 0.6
    assert all(one.low <= one.accuracy <= one.high and len(one.folds) == 3 for one in found.contestants)
    assert len(found.curve) == 5
    rows = list(csv.DictReader((tmp_path / "study" / "wrong_labels.csv").open()))
    assert [row["where"] for row in rows] == [one.where for one in found.suspects]
    page = (tmp_path / "study" / "study.html").read_text()
    assert "<b>texts" not in page
    assert "&lt;b&gt;texts" in page


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "lora"], "features are those of feature-extraction; leave it out"),
        (["--task", "causal-lm"], "is for texts with one class each"),
        (["--folds", 100], "give fewer with --folds"),
    ],
)
def test_what_cannot_be_studied_is_one_sentence(more, said, work, tmp_path):
    done = study(work, tmp_path / "study", *more)
    assert done.exit_code != 0
    assert said in " ".join(done.output.split())
