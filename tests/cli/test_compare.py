"""Methods are trained on the same splits, and compared on the same texts."""

import csv
import random

import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.cli.series import series_members
from ftkit.config.files import load_config
from ftkit.records.answers import answers_file, read_answers
from ftkit.records.files import read_record
from ftkit.training.study.baselines import FOLDERS
from tests.helpers import WORDS, save_tiny_model


@pytest.mark.e2e
def test_compare_trains_each_method_on_the_same_splits_and_says_which_is_better(tmp_path, monkeypatch):
    model, draw = save_tiny_model(tmp_path / "bert", "bert"), random.Random(0)
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([" ".join(draw.sample(WORDS, 5)), draw.choice(["a", "b"])] for _ in range(60))
    monkeypatch.chdir(tmp_path)
    command = [
        *("compare", "--methods", "feature-extraction,lora", "--model", model, "--dataset", "data.csv"),
        *("--output", tmp_path / "out", "--max-steps", "2", "--rank", "2", "--precision", "fp32"),
        *("--set", "output.reopen=false", "--set", "training.plan_first=false", "--max-length", "16"),
    ]
    ran = CliRunner().invoke(main, [str(one) for one in command])
    assert ran.exit_code == 0, ran.output
    folders = [tmp_path / "out" / name for name in ("feature-extraction", "lora")]
    assert read_record(folders[1]).run.config["method"]["rank"] == 2
    folders += [tmp_path / "out" / name for name in FOLDERS.values()]
    assert {read_record(one).run.config["data"]["dataset"] for one in folders} == {str(tmp_path / "data.csv")}
    assert len({read_answers(answers_file(folder, "test")).texts for folder in folders}) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "on 6 texts" in page
    assert all(name in page for name in FOLDERS)


def test_the_runs_of_a_series_differ_by_their_seed_and_share_their_splits(tmp_path):
    config = load_config(settings=["method.name=lora", "training.seed=3"])
    members = series_members([config], 2, tmp_path)
    assert list(members) == ["lora-seed3", "lora-seed4"]
    assert [one.training.seed for one in members.values()] == [3, 4]
    assert {one.data_seed for one in members.values()} == {3}
    assert {one.output.resume for one in members.values()} == {"auto"}, "the same command trains nothing twice"


@pytest.mark.parametrize(("methods", "said"), [("lora", "two methods or more"), ("lora,lroa", "did you mean 'lora'")])
def test_methods_that_cannot_be_compared_are_refused(methods, said):
    ran = CliRunner().invoke(main, ["compare", "--methods", methods])
    assert ran.exit_code == 2
    assert said in ran.stderr
