"""A search for settings starts nothing that does not fit, stops what is worse than others, and goes on when killed."""

import csv
import errno
import json
import multiprocessing
import random
import time
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.cli.tune.trial import start_trial
from ftkit.config.files import load_config
from ftkit.errors import ConfigError, DeviceError
from ftkit.records.files import read_record
from ftkit.report.pages.tuned import best_first
from ftkit.sweep.attend import attend
from ftkit.sweep.space import Axis, Space, read_space
from ftkit.sweep.tuning import Budget, Tuning
from tests.helpers import save_tiny_model
from tests.made_records import write_run


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a tiny model, and texts whose label is whether they are good."""
    folder = tmp_path_factory.mktemp("tuning")
    save_tiny_model(folder / "bert", "bert")
    with (folder / "films.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([f"a {('bad', 'good')[number % 2]} film number {number}", number % 2] for number in range(64))
    return folder


def base(work, *settings):
    own = [
        f"model.name={work / 'bert'}",
        f"data.dataset={work / 'films.csv'}",
        "method.name=full",
        "data.max_length=16",
    ]
    own += ["training.max_steps=4", "batch.global_batch_size=16", "data.subset=null", "training.eval_every=2"]
    return load_config(settings=[*own, *settings])


def test_the_winner_is_written_and_what_does_not_fit_is_never_started(work, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        f"model.name: [{work / 'bert'}, demo]\noptimizer.learning_rate: {{low: 1e-4, high: 1e-1, log: true}}\n"
    )
    flags = ["--model", work / "bert", "--dataset", work / "films.csv", "--method", "full", "--max-length", 16]
    flags += ["--max-steps", 4, "--global-batch-size", 16, "--set", "training.eval_every=2", "--space", space]
    # A process without a model has 520 MB; the demo's has 90 MB of weights, and three times that to train them.
    flags += ["--trials", 3, "--memory-budget", "600MB", "--output", tmp_path / "tune", "--json"]
    flags += ["--precision", "fp32"]
    done = CliRunner().invoke(main, ["tune", *map(str, flags)])
    assert done.exit_code == 0, done.output
    tried = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(tried) == 3
    for one in tried:
        assert (one["state"] == "never started") == (one["settings"]["model.name"] == "demo"), one
        assert (one["folder"] is None) == (one["state"] == "never started")
        assert "a GPU with" not in (one["reason"] or ""), "the budget is of this machine, where the trials run"
        assert one["folder"] is None or read_record(Path(one["folder"])).last_evaluation("test") is None
    assert any(one["state"] == "never started" for one in tried)
    best = min((one for one in tried if one["value"] is not None), key=lambda one: one["value"])
    config = load_config(tmp_path / "tune" / "best.yaml")
    assert f"{config.optimizer.learning_rate:.4g}" == best["settings"]["optimizer.learning_rate"]
    page = (tmp_path / "tune" / "tuning.html").read_text()
    assert "never started" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_search_goes_on_where_it_was_killed_and_stops_what_is_worse_at_a_validation(work, tmp_path):
    tree = {"optimizer.learning_rate": [0.01, 1e-9], "training.max_steps": [12, 4000]}
    own = ("optimizer.learning_rate=0.01", "training.max_steps=12", "training.epochs=null")
    space = read_space(base(work, *own), tree)

    def killed(trial):
        raise SystemExit  # as a kill: nothing is told to the journal behind this

    with pytest.raises(SystemExit):
        Tuning(space, tmp_path / "tune", lambda *_: (None, None), start_trial, killed).run(Budget(1))
    told: list[tuple[int, str, str | None]] = []

    def tell(trial):
        told.append((trial.number, trial.state, trial.reason))

    again = Tuning(space, tmp_path / "tune", lambda *_: (None, None), start_trial, tell)
    assert told == [(0, "killed", "tried again as trial 1")]
    # It learns nothing, and would for 4,000 steps.
    again._study.enqueue_trial({"optimizer.learning_rate": "1e-09", "training.max_steps": "4000"})
    again.run(Budget(2))  # what was killed and tried again counts once
    first, second, third = again.tried()
    assert (first.state, second.state) == ("killed", "complete"), second.reason
    assert first.reason == "tried again as trial 1"
    assert (second.folder, second.settings) == (first.folder, first.settings)
    assert third.state == "stopped"
    assert third.reason.startswith("worse than others at validation")
    other = Space(space.base, (Axis("optimizer.learning_rate", ("0.5",)),))
    with pytest.raises(ConfigError, match=r"holds another search \(\S+ differs\)"):
        Tuning(other, tmp_path / "tune", lambda *_: (None, None), start_trial)


def test_each_trial_that_was_killed_while_it_was_planned_gets_a_folder_of_its_own(work, tmp_path):
    space, places = read_space(base(work), {"optimizer.learning_rate": [0.001, 0.01]}), []

    def killed(*_):
        raise SystemExit

    def ended(file, output):
        places.append(output.parent.name)
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        return process

    for trials in (1, 2):
        with pytest.raises(SystemExit):
            Tuning(space, tmp_path / "tune", killed, ended).run(Budget(trials))
        Tuning(space, tmp_path / "tune", lambda *_: (None, None), ended).run(Budget(trials))
    assert places == ["trial-001", "trial-003"]


def test_a_training_that_has_nothing_left_but_to_be_saved_is_not_stopped(work, tmp_path):
    *lines, _ = (write_run(tmp_path / "made", {}, random.Random(0)) / "record.jsonl").read_text().splitlines(True)

    def trained(file, _):
        def save_slowly():
            (file.parent / "record.jsonl").write_text("".join(lines))
            time.sleep(1.5)  # three looks long

        process = multiprocessing.get_context("fork").Process(target=save_slowly)
        process.start()
        return process

    ended = attend(base(work), tmp_path / "run", "loss", trained, lambda values: "worse" if values else None)
    assert (ended.stopped, ended.failure, len(ended.values)) == (None, None, 8)


def test_a_process_that_cannot_be_started_is_an_error_of_one_sentence(work, tmp_path):
    def refused(*_):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    with pytest.raises(DeviceError, match=r"asked.yaml: Resource temporarily unavailable; free memory"):
        attend(base(work), tmp_path, "loss", refused, lambda _: None)


def test_what_would_not_end_in_time_is_never_started(work, tmp_path):
    space = read_space(base(work), {"optimizer.learning_rate": [0.001]})
    tuning = Tuning(space, tmp_path / "tune", lambda *_: (None, 3600.0), start_trial)
    tuning.run(Budget(1, seconds=60.0))
    (only,) = tuning.tried()
    assert only.state == "never started"
    assert only.reason.startswith("would take about 3600 s of the")


def test_a_trial_is_compared_with_others_by_its_best_validation_so_far(work, tmp_path):
    space = read_space(base(work), {"optimizer.learning_rate": [0.001]})
    tuning = Tuning(space, tmp_path, lambda *_: (None, None), start_trial)
    assert tuning._watch(tuning._study.ask(), None, [0.9, 0.3, 0.8]) is None
    assert tuning._study.trials[0].intermediate_values == {1: 0.9, 2: 0.3, 3: 0.3}


def test_a_trial_that_was_stopped_with_the_best_figure_of_all_wins(work, tmp_path):
    space = read_space(base(work), {"optimizer.learning_rate": [0.001]})
    tuning = Tuning(space, tmp_path, lambda *_: (None, None), start_trial)
    assert tuning.best() is None
    ended = [("complete", 0.5), ("stopped", 0.4), ("stopped", None), ("failed", 0.1), ("never started", None)]
    for state, value in ended:
        told: dict[str, object] = {"state": state, "value": value, "settings": {}}
        tuning._study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, user_attrs=told))
    assert (tuning.best().state, tuning.best().value) == ("stopped", 0.4)
    assert [one.value for one in best_first(tuning.tried(), "loss")] == [0.4, 0.5, 0.1, None, None]
