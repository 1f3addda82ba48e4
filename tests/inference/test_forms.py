"""A trained model has the recorded scores and answers in every form that it can be opened in, wherever that lies."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.records.answers import answers_file, read_answers
from tests.inference.conftest import KINDS

METHODS = ("feature-extraction", "lora", "qlora", "full")
RUNS = [(kind, method) for kind in KINDS for method in METHODS] + [
    ("causal-lm", method) for method in METHODS if method != "feature-extraction"
]
FORMS = [
    (*run, form)
    for run in RUNS
    for form in ("run", "moved", "merged", "adapter")
    if form != "adapter" or run[1] in ("lora", "qlora")
]
ROUNDING = 1e-6
"""A last layer that is computed at one place multiplies matrices of a few rows, whose sums the library takes in another
order from one model to the next: some roundings of fp32, 6e-8 each."""
MERGED = 1e-5
"""Of an adapter that was merged: a weight is rounded once more, and the sums of a model's layers add that up."""


def ftkit(*arguments):
    ran = CliRunner().invoke(main, [str(one) for one in arguments])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


@pytest.fixture(scope="module")
def opened(trained, tmp_path_factory):
    """Return what a run is opened by in a form: of the run its own folder, of others a folder away from it."""
    away = tmp_path_factory.mktemp("away")

    def place(kind, method, form):
        run, _ = trained(kind, method)
        target = away / f"{kind}-{method}-{form}"
        if form == "run" or target.exists():
            return target if target.exists() else run
        if form == "moved":
            return shutil.copytree(run / "model", target)
        ftkit("export", run, "--to", form, "--output", target, "--no-compare")
        return target

    return place


@pytest.mark.parametrize(("kind", "method", "form"), FORMS)
def test_every_form_of_a_model_has_the_recorded_scores_and_answers(kind, method, form, trained, opened, work, tmp_path):
    (run, record), place = trained(kind, method), opened(kind, method, form)
    recorded = record.last_evaluation("test").model_dump(mode="json")
    if (method, form) == ("qlora", "merged"):  # it is merged onto weights that were never packed
        unpacked = ftkit("evaluate", run, "--json", "--set", "method.name=lora")
        assert_same_scores(json.loads(ftkit("evaluate", place, "--json")), json.loads(unpacked), MERGED)
        return
    rounding = MERGED if form == "merged" else ROUNDING
    assert_same_scores(json.loads(ftkit("evaluate", place, "--json")), recorded, rounding)
    if kind != "causal-lm":
        assert_same_answers(place, work / kind, read_answers(answers_file(run, "test")), rounding, tmp_path)


def assert_same_scores(found, wanted, rounding):
    for figure in ("loss", "perplexity", "pearson", "rmse", "mae"):
        # A correlation is of what is left when a mean is taken off, here a thousandth, so that roundings count more.
        within = 1000 * rounding if figure == "pearson" else rounding
        assert found.pop(figure) == (wanted[figure] and pytest.approx(wanted[figure], rel=within))
    untimed = found.keys() - {"seconds"}
    assert {name: found[name] for name in untimed} == {name: wanted[name] for name in untimed}


def assert_same_answers(place, data, recorded, rounding, folder):
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    bare, out = folder / "bare.csv", folder / "out.parquet"
    bare.write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
    done = CliRunner().invoke(main, ["predict", str(place), "--dataset", str(bare), "--output", str(out)])
    assert done.stderr.endswith(f"{len(rows)} answers: {out}\n"), done.output
    table = pq.read_table(out).to_pydict()
    assert table["text"] == [row["text"] for row in rows]
    if recorded.kind == "regression":
        np.testing.assert_allclose(table["label"], recorded.answers, rtol=rounding)
        return
    shares = np.stack([table[f"probability_{name}"] for name in recorded.names], axis=1)
    np.testing.assert_allclose(shares, recorded.probabilities, atol=rounding)
    names = np.array(recorded.names)
    assert table["label"] == [
        (names[one] if recorded.kind == "single" else names[one == 1].tolist()) for one in recorded.answers
    ]


def test_what_evaluate_keeps_is_what_the_run_kept(trained, tmp_path):
    run, _ = trained("regression", "full")
    ftkit("evaluate", run, "--output", tmp_path / "answers.jsonl")
    mine, theirs = read_answers(tmp_path / "answers.jsonl"), read_answers(answers_file(run, "test"))
    assert mine.texts == theirs.texts
    np.testing.assert_allclose(mine.answers, theirs.answers, rtol=ROUNDING)


def test_answers_that_cannot_be_kept_are_refused_before_a_model_is_loaded(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("ftkit.inference.opened.open_model", None)
    (tmp_path / "file").touch()
    for run, arguments, words in [
        (("single", "full"), ["--output", tmp_path / "file" / "answers.jsonl"], "Not a directory; name another file"),
        (
            ("single", "full"),
            ["--output", tmp_path / "new.jsonl", "--split", "train"],
            "name their file with --dataset",
        ),
        (("causal-lm", "lora"), ["--output", tmp_path / "new.jsonl"], "this is a language model; leave it out"),
    ]:
        ran = CliRunner().invoke(main, ["evaluate", *map(str, [trained(*run)[0], *arguments])])
        assert (ran.exit_code, words in ran.stderr) == (2, True), ran.output


def test_another_file_is_scored_in_the_units_of_the_run(opened, trained, work):
    _, record = trained("regression", "full")
    file = work / "regression" / "test.jsonl"
    scored = json.loads(ftkit("evaluate", opened("regression", "full", "merged"), "--dataset", file, "--json"))
    assert scored["rmse"] == pytest.approx(record.last_evaluation("test").rmse, rel=MERGED)


def test_an_adapter_that_another_program_has_made_is_opened(trained, tmp_path):
    run, record = trained("causal-lm", "lora")
    place = shutil.copytree(run / "model", tmp_path / "adapter", ignore=shutil.ignore_patterns("ftkit*"))
    settings = ("--set", "data.max_length=6", "--set", "model.precision=fp32", "--dataset", read_dataset(record))
    scored = json.loads(ftkit("evaluate", place, "--json", "--split", "test", *settings))
    assert scored["loss"] == pytest.approx(record.last_evaluation("test").loss, rel=ROUNDING)


def test_without_a_run_the_data_has_to_be_named(trained, tmp_path):
    run, _ = trained("single", "full")
    place = shutil.copytree(run / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("ftkit*"))
    ran = CliRunner().invoke(main, ["evaluate", str(place)])
    assert ran.exit_code == 2
    assert "name some with --dataset" in ran.stderr


def read_dataset(record):
    return record.run.config["data"]["dataset"]
