"""What a run shows: a live line on a terminal, plain lines elsewhere, and at the end where things are."""

import io

import pytest
from rich.console import Console

from ftkit.records.files import read_record
from ftkit.training.reporters import ConsoleReporter
from ftkit.training.results.folder import summary_rows
from tests.made_records import write_runs


@pytest.fixture
def record(tmp_path):
    return read_record(write_runs(tmp_path / "made", 1) / "000-feature-extraction-plain")


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def shown(request, record, tmp_path):
    """Tell a reporter of a whole run; returns whether it shows it on a terminal, and all that it wrote."""
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, force_terminal=request.param, width=200))
    reporter.start(record.run, tmp_path)
    for line in record.steps:
        reporter.step(line, 3 * 2**30)
    if request.param:
        reporter._bar.refresh()
    for line in record.evaluations:
        reporter.evaluation(line)
    reporter.finish(record, tmp_path)
    return request.param, out.getvalue()


def test_a_step_shows_loss_rate_speed_peak_and_time_left(shown, record):
    is_terminal, text = shown
    line = record.steps[-1]
    for figure in (f"loss {line.loss:.4f}", f"lr {line.learning_rate:.2e}", "tokens/s", "peak 3.00 GiB"):
        assert figure in text
    assert ("left" in text) != is_terminal  # the live line counts the time down as a clock


def test_the_live_line_moves_on_between_steps_that_are_logged(record, tmp_path):
    reporter = ConsoleReporter(Console(file=io.StringIO(), force_terminal=True, width=200))
    reporter.start(record.run, tmp_path)
    reporter.step(record.steps[0], None)
    reporter.advance(record.steps[0].step + 3)
    assert reporter._bar.tasks[0].completed == record.steps[0].step + 3
    assert f"loss {record.steps[0].loss:.4f}" in reporter._bar.tasks[0].fields["figures"]
    reporter.close()


@pytest.mark.parametrize(("is_terminal", "words"), [(True, "1:01:"), (False, "1 h 01 min left")])
def test_the_time_left_is_that_of_the_step(record, tmp_path, is_terminal, words):
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, force_terminal=is_terminal, width=200))
    reporter.start(record.run, tmp_path)
    reporter.step(record.steps[0].model_copy(update={"seconds_left": 3680.0}), None)
    reporter.close()
    assert words in out.getvalue()


def test_only_a_terminal_is_sent_control_sequences(shown):
    is_terminal, text = shown
    assert ("\x1b[" in text) == is_terminal


def test_the_end_says_where_things_are_and_what_to_do_next(shown, tmp_path):
    text = shown[1]
    for name in ("model", "record.jsonl", "README.md"):
        assert str(tmp_path / name) in text
    assert f"ftkit report {tmp_path}" in text
    assert f"ftkit predict {tmp_path} 'a text' answers" in text


def test_a_language_model_is_to_be_talked_to(record, tmp_path):
    out, run = io.StringIO(), record.run.model_copy(update={"config": record.run.config | {"task": "causal-lm"}})
    ConsoleReporter(Console(file=out, width=200)).finish(record.model_copy(update={"run": run}), tmp_path)
    assert f"next: ftkit chat {tmp_path} talks to it" in out.getvalue()


def test_the_total_time_says_what_went_before_the_steps_and_beside_them(record):
    def total(resumed=None, **seconds):
        result = record.result.model_copy(update={"train_seconds": 50.0, "total_seconds": 80.0, **seconds})
        run = record.run.model_copy(update={"resumed_step": resumed})
        return dict(summary_rows(record.model_copy(update={"run": run, "result": result})))["total time"]

    assert total(setup_seconds=20.0) == "1 min 20 s (start 20.0 s, scores and saving 10.0 s)"
    assert total() == total(resumed=8, setup_seconds=20.0) == "1 min 20 s"


def test_a_peak_above_the_budget_is_told_beside_it(record):
    def peak(budget):
        config = record.run.config | {"engine": {"memory_budget": budget}}
        measured = record.result.measurement.model_copy(update={"peak_process_bytes": 800 * 2**20})
        lines = {
            "run": record.run.model_copy(update={"config": config}),
            "result": record.result.model_copy(update={"measurement": measured}),
        }
        return dict(summary_rows(record.model_copy(update=lines)))["peak of one process"]

    assert peak("700MiB") == "800.00 MiB, more than the budget of 700.00 MiB"
    assert peak("900MiB") == peak(None) == "800.00 MiB"


@pytest.mark.parametrize(("share", "told"), [(770, "(< 0.01%)"), (332_500, "(1.46%)")])
def test_a_small_share_of_parameters_is_not_told_as_none(share, told, record):
    measured = record.result.measurement.model_copy(
        update={"num_trainable_parameters": share, "num_parameters": 22_700_000}
    )
    result = record.result.model_copy(update={"measurement": measured})
    rows = dict(summary_rows(record.model_copy(update={"result": result})))
    assert rows["trainable parameters"].endswith(told)


@pytest.mark.parametrize(("step", "is_told"), [(-1, True), (0, False)], ids=["best at the end", "best before"])
def test_a_run_that_was_still_getting_better_is_told_how_to_go_on(step, is_told, record, tmp_path):
    best = [line.step for line in record.evaluations if line.split == "validation"][step]
    out = io.StringIO()
    result = record.result.model_copy(update={"best_step": best})
    ConsoleReporter(Console(file=out, width=200)).finish(
        record.model_copy(update={"result": result}), tmp_path / "my run"
    )
    assert f"ftkit predict '{tmp_path / 'my run'}'" in out.getvalue()
    assert (f"ftkit train --resume '{tmp_path / 'my run'}' --epochs 6 goes on" in out.getvalue()) == is_told
