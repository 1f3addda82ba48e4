"""The report as text: a terminal table, Markdown, LaTeX, CSV, JSON."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ftkit.report.answered import Section, answers_section, as_plain
from ftkit.report.collect import Run
from ftkit.report.columns import COLUMNS, Column, filled_columns, split_shared
from ftkit.report.contest import Cell, Contest, contest, contest_cells, same_but_for_seeds
from ftkit.report.significance import Comparison, compare_groups

_UNBOUNDED = 10_000  # columns of a terminal that fits everything
_CLASSES, _MISTAKES = 8, 5  # that a terminal shows
_SIDE_BY_SIDE = 3  # runs that stand beside one another where their figures do not
_NAME = 30  # columns that a run's name gets at least


def print_table(runs: Sequence[Run], console: Console) -> None:
    """Print the runs in as few tables as the width allows, the run's name first in each.

    A few runs for which one table is too narrow stand side by side, a figure a line. One run begins with its scores.

    Args:
        runs: the rows, in order.
        console: where to print.
    """
    columns, shared = split_shared(runs, [column for column in filled_columns(runs) if column.key != "reason"])
    if len(runs) == 1:
        columns = _print_scores(runs, columns, console)
    if shared:
        console.print(Text("Same in all: " + shared_words(runs, shared), style="dim"))
    parts = _parts(runs, [column for column in columns if column.key != "name"], console)
    turned = _turned(runs, [column for part in parts for column in part])
    fits = len(runs) <= _SIDE_BY_SIDE and _width(turned, console) <= console.width
    for table in [turned] if len(parts) > 1 and fits else [_grid(runs, part) for part in parts]:
        console.print(table)
    for run in runs:
        if run.reason:
            console.print(Text(f"{run.name}: {run.status}: {run.reason}", style=_status_style(run)))
    for one in compare_groups(same_but_for_seeds(runs)):
        console.print(Text(one.sentence()))
    for line in _seed_lines(contest(runs)):
        console.print(Text(line))


def _print_scores(runs: Sequence[Run], columns: Sequence[Column], console: Console) -> list[Column]:
    """Print what the owner of one run looks for first, where it has scores; return the columns that are left."""
    scores = [column for column in columns if column.group == "quality"]
    if not scores:
        return list(columns)
    status = [column for column in columns if column.key == "status"]
    console.print(_turned(runs, [*status, *scores]))
    if answers := answers_section(runs[0]):
        _print_answers(answers, console)
    return [column for column in columns if column not in (*status, *scores)]


def _seed_lines(lines: Sequence[Contest]) -> list[str]:
    """Return the figures of each configuration that ran under several seeds, as a sentence."""
    if all(line.num_runs == 1 for line in lines):
        return []
    (_, _, *headings), rows = contest_cells(lines)
    return [
        f"{name.text}, mean ± standard deviation of {line.num_runs} runs: "
        + ", ".join(f"{heading} {cell.text}" for heading, cell in zip(headings, cells, strict=True) if cell.text)
        for line, (name, _, *cells) in zip(lines, rows, strict=True)
        if line.num_runs > 1
    ]


def _print_answers(answers: Section, console: Console) -> None:
    """Print what one run answered: each label, what is taken for what, how sure it is, and some of its mistakes."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column(f"Label ({answers.split})", overflow="fold")
    for heading in ("Precision", "Recall", "F1", "Rows", "Answered"):
        table.add_column(heading, justify="right")
    for name, figures in answers.labels:
        table.add_row(Text(name), *figures)
    if answers.labels:
        console.print(table)
    if 0 < len(answers.confusion) <= _CLASSES:
        console.print(_confusion(answers))
    for line in answers.calibration:
        console.print(Text(line))
    for one in answers.mistakes[:_MISTAKES]:
        told = f"  {one.confidence}: labelled {one.true}, answered {one.answer}, {one.where}: {printable(one.text)}"
        console.print(Text(told), no_wrap=True, overflow="ellipsis")


def _confusion(answers: Section) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("True, and answered as", overflow="fold")
    for name, _ in answers.confusion:
        table.add_column(Text(name), justify="right", overflow="fold")
    for name, cells in answers.confusion:
        table.add_row(Text(name), *(count for count, _ in cells))
    return table


def printable(text: str) -> str:
    """Return a text on one line, without the control characters that a terminal would obey."""
    return "".join(sign if unicodedata.category(sign)[0] != "C" else " " for sign in " ".join(text.split()))


def markdown(runs: Sequence[Run]) -> str:
    """Return the runs as a Markdown table, and the comparison of methods where there are scores.

    Args:
        runs: the rows, in order.

    Returns:
        Markdown; a `|` and what opens a tag are escaped.
    """
    columns, shared = split_shared(runs, filled_columns(runs))
    parts = [f"Same in all runs: {escape_markdown(shared_words(runs, shared))}.\n"] if shared else []
    parts.append(
        _markdown_table(
            [column.heading for column in columns],
            [[column.show(run) for column in columns] for run in runs],
            [column.is_number for column in columns],
        )
    )
    lines = contest(runs)
    if lines:
        parts.append(comparison_markdown(lines))
    parts += [f"- {escape_markdown(one.sentence())}\n" for one in compare_groups(same_but_for_seeds(runs))]
    return "\n".join(parts)


def comparison_markdown(lines: Sequence[Contest]) -> str:
    """Return the comparison of methods as a Markdown table, the best of each column in bold."""
    headings, rows = contest_cells(lines)
    shown = [[f"**{cell.text}**" if cell.is_best else cell.text for cell in row] for row in rows]
    return _markdown_table(headings, shown, [False] + [True] * (len(headings) - 1))


def comparison_latex(lines: Sequence[Contest]) -> str:
    """Return the comparison of methods as a LaTeX tabular (booktabs), the best of each column in bold."""
    headings, rows = contest_cells(lines)
    shown = [[_latex_cell(cell) for cell in row] for row in rows]
    sides = "l" + "r" * (len(headings) - 1)
    head = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", " & ".join(headings) + r" \\", r"\midrule"]
    return "\n".join([*head, *(" & ".join(row) + r" \\" for row in shown), r"\bottomrule", r"\end{tabular}", ""])


def as_csv(runs: Sequence[Run]) -> str:
    """Return every column of every run as CSV in base units; a value that was not taken is an empty cell."""
    columns = filled_columns(runs, detail=True)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(column.key for column in columns)
    writer.writerows([column.value(run) for column in columns] for run in runs)
    return file.getvalue()


def as_json(runs: Sequence[Run]) -> str:
    """Return everything that is known of every run but its steps, as a JSON list in base units.

    Every column, under its own key; then what has parts: phases, largest tensors, breakdowns, scores, answers, versions
    and the configuration, and the comparisons with the methods that this one is better than. A value that was not taken
    is null.
    """
    groups = same_but_for_seeds(runs)
    names = {run.name: name for name, group in groups.items() for run in group}
    found = compare_groups(groups)
    return json.dumps(
        [_whole(run, [one for one in found if one.first == names.get(run.name)]) for run in runs],
        indent=2,
        ensure_ascii=False,
    )


def _whole(run: Run, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    measured, predicted = run.measured.model_dump(mode="json"), run.predicted.model_dump(mode="json")
    parts = {key: measured[key] for key in ("peak_breakdown", "phases", "largest_tensors")}
    return {
        **{column.key: column.value(run) for column in COLUMNS},
        **parts,
        "evaluations": [line.model_dump(mode="json", exclude={"kind"}) for line in run.record.evaluations],
        "answers": as_plain(run),
        "comparisons": [asdict(one) | {"sentence": one.sentence()} for one in comparisons],
        "prediction": predicted if run.record.run.prediction else None,
        "versions": run.record.run.versions,
        "started": run.record.run.started,
        "purpose": run.record.run.purpose,
        "config": run.record.run.config,
    }


def _parts(runs: Sequence[Run], columns: Sequence[Column], console: Console) -> list[list[Column]]:
    """Cut the columns into tables that fit the console; what belongs to one figure stays together."""
    parts: list[list[Column]] = [[]]
    for _, members in groupby(columns, key=lambda column: column.heading.partition(", ")[0]):
        figure = list(members)
        if parts[-1] and _width(_grid(runs, [*parts[-1], *figure], _NAME), console) > console.width:
            parts.append([])
        parts[-1] += figure
    return parts


def _grid(runs: Sequence[Run], columns: Sequence[Column], name_width: int | None = None) -> Table:
    """Return a table of some columns; a name longer than `name_width`, or than the room that is left, is folded."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("Run", overflow="fold", max_width=name_width)
    for column in columns:
        side: JustifyMethod = "right" if column.is_number else "left"
        table.add_column(column.heading.replace(", ", "\n"), justify=side, no_wrap=True)
    for run in runs:
        table.add_row(Text(run.name, style=_status_style(run)), *(_cell(column, run) for column in columns))
    return table


def _turned(runs: Sequence[Run], columns: Sequence[Column]) -> Table:
    """Return a table with a column for each run and a row for each figure."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("Run", no_wrap=True)
    for run in runs:
        table.add_column(Text(run.name, style=_status_style(run)), justify="right", overflow="fold", max_width=_NAME)
    for column in columns:
        table.add_row(column.heading, *(_cell(column, run) for run in runs))
    return table


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table).maximum


def _cell(column: Column, run: Run) -> Text:
    return Text(column.show(run), style=_status_style(run) if column.key == "status" else "")


def _status_style(run: Run) -> str:
    if run.status in ("completed", "stopped early"):
        return ""
    return "yellow" if run.status in ("unfinished", "interrupted") else "red"


def shared_words(runs: Sequence[Run], columns: Sequence[Column]) -> str:
    """Return what all runs share as words, read off the first that has the setting."""
    shown = {column.heading.lower(): next(filter(None, map(column.show, runs)), "") for column in columns}
    return ", ".join(f"{heading} {words}" for heading, words in shown.items() if words)


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    lines = [headings, ["---:" if number else "---" for number in numbers], *rows]
    return "".join("| " + " | ".join(escape_markdown(cell) for cell in line) + " |\n" for line in lines)


def escape_markdown(cell: str) -> str:
    """Return a text that a table of Markdown shows as it is; a `<` that opens no tag stays, since some read it bare."""
    return _TAG.sub("&lt;", " ".join(cell.split()).replace("|", r"\|"))


_TAG = re.compile(r"<(?=[A-Za-z/!?])")
"""What HTML inside Markdown, or a link of it, begins with: https://spec.commonmark.org/0.31.2/#raw-html."""
_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "·": r"$\cdot$"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def _latex_cell(cell: Cell) -> str:
    escaped = "".join(_LATEX.get(sign, sign) for sign in cell.text)
    return rf"\textbf{{{escaped}}}" if cell.is_best else escaped
