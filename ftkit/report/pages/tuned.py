"""The page of a search for settings: what was tried, what mattered, and which settings went together with what figure.

Its charts are drawn here, as SVG: they have no need of a plotting library.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftkit.report.metrics import METRICS
from ftkit.report.pages.templates import fill_page
from ftkit.units import counted, format_seconds

_WIDTH, _HEIGHT, _TOP, _BOTTOM = 150, 300, 34, 26
"""Pixels of the parallel coordinates: between two axes, along an axis, above and below it."""
_MOST_MARKS = 4
_LINE = 13
"""Pixels between two marks below which one would be written over the other."""
_FACTORS = 20
"""Numbers that differ by more than this factor are drawn by factors."""


@dataclass(frozen=True)
class Tried:
    """One configuration that was tried.

    Attributes:
        number: counted from 0.
        settings: what it changes: key to value, as YAML.
        state: `complete`, `stopped` (worse than others at a validation), `never started`, `failed`, `running`, or
            `killed` with the whole search, which tries it again.
        value: the best figure of its validations; None where there was none.
        seconds: that its process took.
        reason: why it never started, was stopped or failed; of one that was killed, which it is now.
        folder: of its run; None where it never started.
    """

    number: int
    settings: Mapping[str, str]
    state: str
    value: float | None = None
    seconds: float | None = None
    reason: str | None = None
    folder: Path | None = None

    @property
    def may_win(self) -> bool:
        """Whether its settings reach its figure: at its end, what was stopped would not have had a worse one."""
        return self.value is not None and self.state in ("complete", "stopped")


@dataclass(frozen=True)
class Axis:
    """An axis of the parallel coordinates: its heading, where it stands, and its marks with their heights."""

    heading: str
    x: int
    marks: list[tuple[str, float]]


@dataclass(frozen=True)
class Line:
    """A trial among the parallel coordinates: the points of its line, how good it is from 0 to 1, and its words."""

    points: str
    share: float
    words: str


def tuned_page(tried: Sequence[Tried], importances: Mapping[str, float], metric: str, title: str) -> str:
    """Return the page of a search as HTML.

    Args:
        tried: all trials, in the order in which they were chosen.
        importances: the share of each key in how the figure varies; empty where nothing is known of it.
        metric: the figure that was searched for.
        title: the heading.

    Returns:
        A document that asks the network for nothing and whose texts are all escaped.
    """
    keys = list(dict.fromkeys(key for one in tried for key in one.settings))
    axes, lines = coordinates(tried, metric)
    return fill_page(
        "tuned",
        title=title,
        lead=lead(tried),
        metric=METRICS[metric],
        keys=keys,
        tried=best_first(tried, metric),
        importances=sorted(importances.items(), key=lambda item: -item[1]),
        axes=axes,
        lines=lines,
        size=(_WIDTH * max(1, len(axes)), _HEIGHT + _TOP + _BOTTOM),
        along=(_TOP, _TOP + _HEIGHT),
        seconds=format_seconds,
        short=short,
    )


def short(key: str) -> str:
    """Return the last part of a key, `method` for the method itself."""
    section, _, name = key.rpartition(".")
    return section if name == "name" else name.replace("_", " ")


def lead(tried: Sequence[Tried]) -> str:
    """Say how many trials there are, and how they ended."""
    states = ("complete", "stopped", "never started", "failed", "killed")
    ended = [(sum(one.state == state for one in tried), state) for state in states]
    return f"{counted(len(tried), 'trial')}: {', '.join(f'{count} {state}' for count, state in ended if count)}."


def best_first(tried: Sequence[Tried], metric: str) -> list[Tried]:
    """Return the trials with the best figure first: those that may win, then others, then those without."""
    sign = METRICS[metric].sign

    def order(one: Tried) -> tuple[bool, bool, float]:
        return one.value is None, not one.may_win, math.inf if one.value is None else sign * one.value

    return sorted(tried, key=order)


def coordinates(tried: Sequence[Tried], metric: str) -> tuple[list[Axis], list[Line]]:
    """Return the axes and the lines of the parallel coordinates, the best trial last, so that it lies on top.

    Args:
        tried: those without a figure are left out.
        metric: the heading of the last axis.

    Returns:
        Nothing where fewer than two trials have a figure.
    """
    known = [one for one in best_first(tried, metric) if one.value is not None]
    keys = [key for key in dict.fromkeys(key for one in known for key in one.settings) if _varies(known, key)]
    if len(known) < 2 or not keys:
        return [], []
    columns = [[one.settings.get(key) for one in known] for key in keys]
    columns.append([str(one.value) for one in known])
    axes, heights = [], []
    for place, (heading, column) in enumerate(zip([*map(short, keys), METRICS[metric].heading], columns, strict=True)):
        scaled = _heights(column)
        heights.append(scaled)
        axes.append(Axis(heading, place * _WIDTH + _WIDTH // 2, _marks(column, scaled)))
    lines = []
    for number, one in enumerate(known):
        places = ((axis.x, column[number]) for axis, column in zip(axes, heights, strict=True))
        points = " ".join(f"{x},{y:.1f}" for x, y in places if y is not None)
        settings = ", ".join(f"{short(key)} {value}" for key, value in one.settings.items())
        figure = format(one.value or 0.0, METRICS[metric].form)
        lines.append(Line(points, 1 - number / max(1, len(known) - 1), f"trial {one.number}: {figure} ({settings})"))
    return axes, lines[::-1]


def _varies(known: Sequence[Tried], key: str) -> bool:
    return len({one.settings.get(key) for one in known}) > 1


def _heights(column: Sequence[str | None]) -> list[float | None]:
    """Return the place of each value along its axis, in pixels from above; None where a trial has no such key."""
    numbers = [_number(value) for value in column]
    if any(value is not None and number is None for value, number in zip(column, numbers, strict=True)):
        names = sorted({value for value in column if value is not None})
        numbers = [None if value is None else float(names.index(value)) for value in column]
    present = [number for number in numbers if number is not None]
    low, high = min(present), max(present)
    if low > 0 and high / low > _FACTORS:
        numbers = [None if number is None else math.log(number) for number in numbers]
        low, high = math.log(low), math.log(high)
    span = high - low or 1.0
    return [None if number is None else _TOP + _HEIGHT * (1 - (number - low) / span) for number in numbers]


def _marks(column: Sequence[str | None], heights: Sequence[float | None]) -> list[tuple[str, float]]:
    """Return what is written at an axis: its least and largest value, and a few between them that have room."""
    marks = {
        value: height for value, height in zip(column, heights, strict=True) if value is not None and height is not None
    }
    ordered = sorted(marks.items(), key=lambda item: item[1])
    written = dict([ordered[0], ordered[-1]])
    for text, at in ordered[1:-1] if len(ordered) <= _MOST_MARKS else ():
        if all(abs(at - other) >= _LINE for other in written.values()):
            written[text] = at
    return [(f"{number:.4g}" if (number := _number(text)) is not None else text, at) for text, at in written.items()]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
