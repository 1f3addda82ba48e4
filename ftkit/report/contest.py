"""The comparison of methods, as a paper would print it: repetitions under several seeds taken together."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ftkit.report import words
from ftkit.report.collect import Run
from ftkit.report.columns import COLUMNS, MEMORY_FIGURES, final_loss, measured, scored, scores, split_shared
from ftkit.report.compare import labels
from ftkit.report.metrics import METRICS


@dataclass(frozen=True)
class Spread:
    """A mean over repetitions and their standard deviation (0 where there is one)."""

    mean: float
    deviation: float = 0.0

    def show(self, shown: Callable[[float], str]) -> str:
        """Return `mean ± deviation` in words, without the deviation where there is none."""
        return shown(self.mean) + (f" ± {shown(self.deviation)}" if self.deviation else "")


@dataclass(frozen=True)
class Contest:
    """One line of the comparison of methods: a configuration over all seeds that ran it.

    Attributes:
        label: what it is.
        num_runs: how many seeds.
        figures: key of `CONTEST_FIGURES` to its value; None where no run has it.
    """

    label: str
    num_runs: int
    figures: dict[str, Spread | None]


@dataclass(frozen=True)
class ContestFigure:
    """A column of the comparison of methods.

    Attributes:
        heading: its name.
        value: a run to its value.
        shown: a value to words.
        best: the function that picks the best of several values, or None where there is no better or worse.
    """

    heading: str
    value: Callable[[Run], float | None]
    shown: Callable[[float], str]
    best: Callable[[Iterable[float]], float] | None


_SHOWN: dict[str, Callable[[float], str]] = {
    **dict.fromkeys(("accuracy", "f1_macro"), words.score),
    **dict.fromkeys(("exact_match", "f1_micro", "pearson", "spearman", "mae", "rmse"), words.figure),
    "perplexity": words.rate,
    "loss": words.score,
}
"""The scores that are compared, and how each is written."""
CONTEST_FIGURES: dict[str, ContestFigure] = {
    **{
        name: ContestFigure(METRICS[name].heading, scored(name), shown, METRICS[name].best)
        for name, shown in _SHOWN.items()
    },
    "final_loss": ContestFigure("Final train loss", final_loss, words.score, None),
    "train_seconds": ContestFigure(
        "Time", lambda run: getattr(run.record.result, "train_seconds", None), words.duration, min
    ),
    **{key: ContestFigure(heading, measured(key), words.size, min) for key, (heading, _) in MEMORY_FIGURES.items()},
    "processor_joules": ContestFigure("Processor energy", measured("processor_joules"), words.energy, min),
    "gpu_joules": ContestFigure("GPU energy", measured("gpu_joules"), words.energy, min),
    "num_trainable_parameters": ContestFigure("Trainable", measured("num_trainable_parameters"), words.count, None),
}


def filled_figures(lines: Sequence[Contest]) -> dict[str, ContestFigure]:
    """Return the columns of the comparison that at least one line fills."""
    return {
        key: figure for key, figure in CONTEST_FIGURES.items() if any(line.figures[key] is not None for line in lines)
    }


def contest(runs: Sequence[Run]) -> list[Contest]:
    """Compare the trained configurations, the same configuration under several seeds taken together.

    Args:
        runs: any runs; those without scores are left out.

    Returns:
        One line each, in the order of the first run.
    """
    return [
        Contest(
            label=name,
            num_runs=len(group),
            figures={key: _spread(group, figure.value) for key, figure in CONTEST_FIGURES.items()},
        )
        for name, group in same_but_for_seeds(runs).items()
    ]


def same_but_for_seeds(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs that have scores by their configuration, in the order of the first of each.

    Args:
        runs: any runs.

    Returns:
        What a configuration is called, to its runs.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if scores(run) is not None:
            groups.setdefault(_without_seed(run), []).append(run)
    names = _contest_labels([group[0] for group in groups.values()]) if groups else []
    return dict(zip(names, groups.values(), strict=True))


def best_in_contest(lines: Sequence[Contest], key: str) -> float | None:
    """Return the best mean of a figure, None where nothing is to be won or all are equal."""
    figure = CONTEST_FIGURES[key]
    means = [spread.mean for line in lines if (spread := line.figures[key]) is not None]
    return figure.best(means) if figure.best and len(set(means)) > 1 else None


@dataclass(frozen=True)
class Cell:
    """A cell of the comparison, and whether it is the best of its column."""

    text: str
    is_best: bool = False


def contest_cells(lines: Sequence[Contest]) -> tuple[list[str], list[list[Cell]]]:
    """Return the comparison as headings and rows of cells, without the columns that nobody fills.

    Args:
        lines: what `contest` returned.

    Returns:
        (headings, one row for each line); the first column is the configuration.
    """
    figures = filled_figures(lines)
    with_seeds = any(line.num_runs > 1 for line in lines)
    headings = ["Configuration", *(["Runs"] if with_seeds else []), *(figure.heading for figure in figures.values())]
    best = {key: best_in_contest(lines, key) for key in figures}
    rows = []
    for line in lines:
        row = [Cell(line.label), *([Cell(str(line.num_runs))] if with_seeds else [])]
        for key, figure in figures.items():
            spread = line.figures[key]
            row.append(Cell(spread.show(figure.shown), spread.mean == best[key]) if spread else Cell(""))
        rows.append(row)
    return headings, rows


def _without_seed(run: Run) -> str:
    """Return everything that makes the run what it is, but its seed and its folder."""
    config = {key: value for key, value in run.record.run.config.items() if key != "output"}
    training = {key: value for key, value in (config.get("training") or {}).items() if key != "seed"}
    line = run.record.run
    return json.dumps([{**config, "training": training}, line.world_size, line.device], sort_keys=True, default=str)


def _contest_labels(firsts: Sequence[Run]) -> list[str]:
    if len(firsts) == 1:
        return [words.method(firsts[0])]
    differing, _ = split_shared(firsts, COLUMNS)
    return labels(firsts, [column for column in differing if column.key != "seed"])


def _spread(group: Sequence[Run], value: Callable[[Run], float | None]) -> Spread | None:
    values = [found for run in group if (found := value(run)) is not None]
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
