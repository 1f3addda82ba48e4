"""What a report says of scores, for each kind of labels: columns, a baseline beside them, and tables of each label."""

import io
from typing import Any

import pytest
from rich.console import Console

from ftkit.records.schema import EvaluationLine, Measurement, ResultLine, RunLine, RunRecord
from ftkit.records.scores import LabelScores
from ftkit.report import text
from ftkit.report.collect import Run
from ftkit.report.columns import filled_columns
from ftkit.report.contest import best_in_contest, contest
from ftkit.report.metrics import KINDS, METRICS
from ftkit.report.pages.chart_data import chart_data
from ftkit.report.pages.page import html_page, tiles

HOSTILE = "</script><b>|spam"
FIGURES: dict[str, dict[str, Any]] = {
    "single": {"accuracy": 0.9, "baseline": 0.8, "f1_macro": 0.7, "confusion": [[8, 0], [1, 1]]},
    "multi": {"exact_match": 0.5, "baseline": 0.25, "f1_macro": 0.7, "f1_micro": 0.8},
    "regression": {"pearson": 0.93, "spearman": 0.91, "mae": 1234.5678, "rmse": 0.00123456, "baseline": 0.5},
}


def scored(kind, better=0.0, **more):
    line = RunLine(
        name=kind, started="", config={"training": {"seed": 0, "epochs": 1 + better}}, engine="plain", precision="fp32",
        world_size=1, device="cpu", num_steps=1,
    )  # fmt: skip
    each = [("ham", 8, 9), (HOSTILE, 2, 1)] if kind != "regression" else []
    per_label = tuple(
        LabelScores(name=name, precision=0.5, recall=0.25, f1=1 / 3, support=support, num_predicted=answered)
        for name, support, answered in each
    )
    figures = FIGURES[kind] | {
        name: FIGURES[kind][name] + better for name in ("rmse", "f1_micro") if name in FIGURES[kind]
    }
    evaluation = EvaluationLine(
        step=1, epoch=1.0, split="test", loss=0.4, num_samples=10, seconds=1.0, per_label=per_label or None, **figures
    )
    end = ResultLine(status="completed", num_steps=1, train_seconds=1, total_seconds=1, measurement=Measurement())
    return Run(f"{kind}{more.get('name', '')}", RunRecord(run=line, evaluations=(evaluation,), result=end))


@pytest.mark.parametrize("kind", FIGURES)
def test_every_figure_of_a_kind_has_a_column_and_a_value_in_the_tables(kind):
    run = scored(kind)
    columns = {column.key: column.show(run) for column in filled_columns([run], detail=True)}
    assert set(FIGURES[kind]) - {"confusion"} <= set(columns)
    out = io.StringIO()
    text.print_table([run], Console(file=out, width=300))
    assert "Baseline" in out.getvalue()
    if kind == "regression":
        assert (columns["mae"], columns["rmse"]) == ("1235", "0.001235")


def test_every_score_of_every_kind_is_one_that_a_report_knows():
    assert {name for names in KINDS.values() for name in names} == set(METRICS)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_a_row_unfolds_to_the_figures_of_each_label_as_they_are_called(kind):
    (run,) = chart_data([scored(kind)], ["a"], None)["runs"]
    tables = {table["title"]: table for table in run["details"]}
    assert tables["Each label on the test split"]["rows"] == [
        ["ham", "0.500", "0.250", "0.333", "8", "9"],
        [HOSTILE, "0.500", "0.250", "0.333", "2", "1"],
    ]
    confusion = tables.get("Answers on the test split (row: the true label)")
    assert (confusion is None) == (kind == "multi")
    if confusion:
        assert confusion["rows"] == [["ham", "8", "0"], [HOSTILE, "1", "1"]]
    assert HOSTILE not in html_page([scored(kind)])


def test_the_better_of_two_runs_has_the_smaller_error_or_the_larger_f1():
    worse, better = scored("regression", 1.0, name="worse"), scored("regression")
    lines = contest([worse, better])
    assert best_in_contest(lines, "rmse") == pytest.approx(0.00123456)
    assert [tile.figure for tile in tiles([worse, better], ["a", "b"]) if "RMSE" in tile.heading] == ["0.001235"]
    lines = contest([scored("multi"), scored("multi", 0.1, name="better")])
    assert best_in_contest(lines, "f1_micro") == pytest.approx(0.9)


def test_runs_that_differ_in_their_learning_rate_alone_are_told_apart_by_it():
    def at(rate):
        run = scored("single", name=str(rate))
        config = {"method": {"name": "full"}, "optimizer": {"learning_rate": rate}, "training": {"seed": 0}}
        return Run(
            run.name, run.record.model_copy(update={"run": run.record.run.model_copy(update={"config": config})})
        )

    runs = [at(0.001), at(0.0001)]
    assert [line.label for line in contest(runs)] == ["full · rate 0.001", "full · rate 0.0001"]
    assert "learning_rate" in text.as_csv(runs)
