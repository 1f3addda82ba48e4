"""The page of a study of features, its files and its lines; its charts are drawn here, as SVG."""

import csv
import io
from collections.abc import Sequence

from ftkit.records.study import Contestant, CurvePoint, StudyRecord
from ftkit.report.pages.templates import fill_page
from ftkit.units import counted

_WIDTH, _HEIGHT, _LEFT, _EDGE = 640, 260, 64, 32
"""Pixels of the learning curve: in all, and left free for its marks."""
_SHOWN = 200
"""Suspected labels on the page; the CSV has all."""


def study_lines(study: StudyRecord) -> list[str]:
    """Return a study as lines of text."""
    lines = [
        f"{one.name:14} accuracy {one.accuracy:.4f}, {one.low:.4f} to {one.high:.4f} (95 %)"
        for one in study.contestants
    ]
    lines += [f"with {point.num_sequences:,} texts: {point.accuracy:.4f}" for point in study.curve]
    return [*lines, more_labels(study.curve), _suspected(study)]


def more_labels(curve: Sequence[CurvePoint]) -> str:
    """Say whether more labels would help, by the last two points of a learning curve."""
    before, last = curve[-2], curve[-1]
    gain = last.accuracy - before.accuracy
    noise = last.spread / 2
    grown = f"the last {1 - before.num_sequences / last.num_sequences:.0%} of the texts brought {gain:+.4f}"
    return f"would more labels help? {grown}; " + (
        "so probably yes" if gain > noise else "folds differ by more than that, so probably not by much"
    )


def _suspected(study: StudyRecord) -> str:
    share = len(study.suspects) / study.num_sequences
    number = len(study.suspects)
    return f"{counted(number, 'label')} ({share:.1%}) {'is' if number == 1 else 'are'} probably wrong"


def suspects_csv(study: StudyRecord) -> str:
    """Return the labels that are probably wrong as CSV, the most suspicious first."""
    rows = [
        (
            one.where,
            one.label,
            one.suggested,
            f"{one.label_probability:.4f}",
            f"{one.suggested_probability:.4f}",
            one.text,
        )
        for one in study.suspects
    ]
    head = ("where", "label", "suggested", "label_probability", "suggested_probability", "text")
    return _csv([head, *rows])


def curve_csv(study: StudyRecord) -> str:
    """Return the learning curve as CSV."""
    rows = [(point.num_sequences, f"{point.accuracy:.6f}", f"{point.spread:.6f}") for point in study.curve]
    return _csv([("num_sequences", "accuracy", "spread"), *rows])


def study_page(study: StudyRecord) -> str:
    """Return a study as a page that asks the network for nothing and whose texts are all escaped."""
    return fill_page(
        "study",
        study=study,
        shown=study.suspects[:_SHOWN],
        suspected=_suspected(study),
        verdict=more_labels(study.curve),
        bars=[(one, *_bar(one)) for one in study.contestants],
        points=points_of(study.curve),
        size=(_WIDTH, _HEIGHT, _LEFT, _EDGE),
    )


def points_of(curve: Sequence[CurvePoint]) -> list[tuple[float, float, CurvePoint]]:
    """Return the points of a learning curve with their places in pixels, from the left and from the top."""
    low = min(point.accuracy - point.spread for point in curve)
    high = max(point.accuracy + point.spread for point in curve)
    largest, span = curve[-1].num_sequences, (high - low) or 1.0
    return [
        (
            _LEFT + (_WIDTH - _LEFT - _EDGE) * point.num_sequences / largest,
            _EDGE + (_HEIGHT - 2 * _EDGE) * (1 - (point.accuracy - low) / span),
            point,
        )
        for point in curve
    ]


def _bar(one: Contestant) -> tuple[float, float, float]:
    """Return the places of an accuracy and of the ends of its interval, in per cent of a row."""
    return 100 * one.accuracy, 100 * one.low, 100 * one.high


def _csv(rows: Sequence[Sequence[object]]) -> str:
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerows(rows)
    return made.getvalue()
