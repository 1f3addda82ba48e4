"""The report as one HTML page that stands alone: its styles, scripts, data and plotting library are inside it."""

import base64
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

from ftkit.report import words
from ftkit.report.answered import answers_section
from ftkit.report.collect import Run
from ftkit.report.columns import MEMORY_FIGURES, Column, filled_columns, scores, split_shared
from ftkit.report.compare import labels, prediction_errors
from ftkit.report.contest import contest, contest_cells, same_but_for_seeds
from ftkit.report.metrics import METRICS, taken
from ftkit.report.pages.chart_data import chart_data
from ftkit.report.pages.templates import fill_page, page_file
from ftkit.report.significance import compare_groups
from ftkit.report.text import comparison_latex, comparison_markdown, shared_words
from ftkit.units import counted


@dataclass(frozen=True)
class Tile:
    """One of the few figures at the top of the page: what, how much, and which run."""

    heading: str
    figure: str
    note: str


def html_page(runs: Sequence[Run], title: str = "ftkit report", budget_bytes: int | None = None) -> str:
    """Return the report as HTML.

    Args:
        runs: the rows, in order; at least one.
        title: the page's heading.
        budget_bytes: the memory that there is, drawn as a line; None: what the plans of all runs went by, if it is
            the same.

    Returns:
        A document that asks the network for nothing and whose texts are all escaped.
    """
    columns, shared = split_shared(runs, filled_columns(runs))
    names = labels(runs, columns)
    lines = contest(runs)
    data = chart_data(runs, names, budget_bytes or shared_budget(runs))
    answers = answers_section(runs[0]) if len(runs) == 1 else None
    return fill_page(
        "page",
        title=title,
        lead=lead(runs),
        tiles=tiles(runs, names),
        columns=columns,
        groups=_column_groups(columns),
        filters=_filters(runs, columns),
        scales=_scales(runs, columns),
        shared=shared_words(runs, shared) if shared else "",
        runs=runs,
        names=names,
        contest=contest_cells(lines) if lines else None,
        comparisons=[one.sentence() for one in compare_groups(same_but_for_seeds(runs))],
        contest_markdown=comparison_markdown(lines) if lines else "",
        contest_latex=comparison_latex(lines) if lines else "",
        sources=_sources(runs),
        answers=answers,
        shows=_charts_with_something_to_show(runs, data),
        data=_script_json(data),
        scripts=[page_file("table.js"), page_file("charts.js")],
        plotly=_plotly(),
    )


def lead(runs: Sequence[Run]) -> str:
    """Say in a sentence or two how many runs there are, on what, and how they ended."""
    endings = Counter(run.status for run in runs)
    good = endings.pop("completed", 0) + endings.pop("stopped early", 0)
    rest = ", ".join(f"{number} {status}" for status, number in endings.most_common())
    devices = " and ".join(sorted({str(words.device(run)) for run in runs if words.device(run)}))
    where = f" on {devices}" if devices else ""
    return f"{counted(len(runs), 'run')}{where}: {good} completed" + (f", {rest}." if rest else ".")


def shared_budget(runs: Sequence[Run]) -> int | None:
    """Return the memory of the device that every run was planned for; None where they differ or nothing was planned."""
    budgets = {run.predicted.budget_bytes for run in runs if run.record.run.prediction}
    return budgets.pop() if len(budgets) == 1 else None


def tiles(runs: Sequence[Run], names: Sequence[str]) -> list[Tile]:
    """Return the figures at the top: of one run its scores first; of several the fastest, the leanest, the best."""
    if len(runs) == 1 and scores(runs[0]) is not None:
        return _tiles_of_one(runs[0])
    found: list[Tile] = []
    named = list(zip(runs, names, strict=True))
    fast = [(run.measured.tokens_per_second, name) for run, name in named if run.measured.tokens_per_second]
    if fast:
        speed, name = max(fast)
        found.append(Tile("Fastest", f"{words.rate(speed)} tokens/s", name))
    for field, (heading, _) in MEMORY_FIGURES.items():
        lean = [(taken, name) for run, name in named if (taken := getattr(run.measured, field))]
        if lean:
            size, name = min(lean)
            found.append(Tile(f"Least memory ({heading.lower()})", words.size(size), name))
            break
    found += _best_score(named)
    for field, errors in prediction_errors(runs).items():
        sizes = [abs(error) for error in errors]
        note = f"median of {len(sizes)}; worst {max(sizes) * 100:.2f} %" if len(sizes) > 1 else "of one run"
        heading = f"Error of prediction ({MEMORY_FIGURES[field][0].lower()})"
        found.append(Tile(heading, f"{median(sizes) * 100:.2f} %", note))
    return found[:4]


def _tiles_of_one(run: Run) -> list[Tile]:
    """Return what a run scored, then what it took."""
    line, measured = scores(run), run.measured
    assert line is not None
    kept = [name for name in taken(line) if name != "loss"][:2] or ["loss"]
    found = [Tile(METRICS[name].heading, format(getattr(line, name), METRICS[name].form), line.split) for name in kept]
    if line.baseline is not None:
        found[0] = Tile(found[0].heading, found[0].figure, f"{line.split}; always the same answer: {line.baseline:.4g}")
    for field, (heading, _) in MEMORY_FIGURES.items():
        if size := getattr(measured, field):
            found.append(Tile(heading, words.size(size), words.method(run)))
            break
    if measured.tokens_per_second:
        found.append(Tile("Speed", f"{words.rate(measured.tokens_per_second)} tokens/s", str(words.device(run) or "")))
    return found


def _best_score(named: Sequence[tuple[Run, str]]) -> list[Tile]:
    """Return who answers best, by the first figure that any run was scored by."""
    for field, heading in (("accuracy", "Most accurate"), ("f1_micro", "Best F1 (micro)"), ("rmse", "Least RMSE")):
        judged = [(value, name) for run, name in named if (value := getattr(scores(run), field, None)) is not None]
        if judged:
            value = METRICS[field].best(value for value, _ in judged)
            name = next(name for found, name in judged if found == value)
            return [Tile(heading, words.figure(value) if field == "rmse" else words.score(value), name)]
    return []


def _column_groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Return the headings over the headings, each with the number of columns below it."""
    return [(group, number) for group, number in Counter(column.group for column in columns).items()]


def _filters(runs: Sequence[Run], columns: Sequence[Column]) -> list[tuple[Column, list[str]]]:
    """Return the columns worth a menu, each with its choices in the order of first sight."""
    choices = [
        (column, list(dict.fromkeys(shown for run in runs if (shown := column.show(run)))))
        for column in columns
        if column.group == "configuration" and column.key != "name"
    ]
    return [(column, shown) for column, shown in choices if 2 <= len(shown) <= 12]


def _scales(runs: Sequence[Run], columns: Sequence[Column]) -> dict[str, float]:
    """Return the largest value of each column that is drawn as a bar behind its number."""
    barred = [column for column in columns if column.key in (*MEMORY_FIGURES, "tokens_per_second")]
    return {
        column.key: max(float(value) for run in runs if (value := column.value(run)) is not None) for column in barred
    }


def _sources(runs: Sequence[Run]) -> list[str]:
    """Say how each kind of number was taken, as the records tell."""
    live = sorted({source for run in runs if (source := run.measured.active_source)})
    process = sorted({source for run in runs if (source := run.measured.process_source)})
    sentences = [f"Peak live: {', '.join(live)}."] if live else []
    return sentences + ([f"Peak process: {', '.join(process)}."] if process else [])


def _charts_with_something_to_show(runs: Sequence[Run], data: dict[str, Any]) -> set[str]:
    """Return the charts that show something; a point by itself is not a chart."""
    shown = set()
    for run in runs:
        memory = any(getattr(run.measured, field) for field in MEMORY_FIGURES)
        shown |= {"tradeoff"} if memory and run.measured.tokens_per_second and len(runs) > 1 else set()
        shown |= {"breakdown"} if run.measured.peak_breakdown or run.predicted.peak_breakdown else set()
        shown |= {"timeline"} if run.record.timeline else set()
    shown |= {"curves"} if any(curve for run in data["runs"] for curve in run["curves"]) else set()
    shown |= {"reliability"} if data["reliability"] and len(data["reliability"]["plain"]) > 1 else set()
    return shown | ({"prediction"} if prediction_errors(runs) and len(runs) > 1 else set())


def _script_json(data: object) -> str:
    """Return JSON that no text inside can end the script element of (HTML standard, 4.12.1.3)."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


@cache
def _plotly() -> str:
    """Return the plotting library, packed: 1.9 MB in the page instead of 4.8; the browser unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
