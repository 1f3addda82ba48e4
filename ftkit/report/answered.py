"""What the kept answers of one run say: how sure it is, how right it is then, and which mistakes are the surest."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftkit.records.answers import Answers
from ftkit.records.scores import LabelScores
from ftkit.report import words
from ftkit.report.calibration import (
    Bin,
    Threshold,
    at_temperature,
    calibration_error,
    fit_temperature,
    questions,
    reliability,
    tune_threshold,
)
from ftkit.report.collect import Run
from ftkit.report.columns import scores

_MOST_MISTAKES = 20
_MOST_LABELS = 100
_MOST_CLASSES = 20
"""More than a screen can show; the record has them all."""
_JUDGED = ("test", "validation")


@dataclass(frozen=True)
class Mistake:
    """An example that was answered wrongly, in words.

    Attributes:
        text: its text, as far as it was kept.
        where: file and row.
        true: what it is labelled.
        answer: what it was answered.
        confidence: how sure the answer was; of numbers by how much it is off.
    """

    text: str
    where: str
    true: str
    answer: str
    confidence: str


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities are what they say.

    Attributes:
        split: what was scored.
        error: the expected calibration error.
        bins: the reliability plot.
        temperature: fitted on validation; None without answers to it.
        error_at_temperature: the error when logits are divided by it.
        bins_at_temperature: the plot then.
        threshold: of two classes, tuned on validation.
    """

    split: str
    error: float
    bins: list[Bin]
    temperature: float | None = None
    error_at_temperature: float | None = None
    bins_at_temperature: list[Bin] | None = None
    threshold: Threshold | None = None


def judged(run: Run) -> Answers | None:
    """Return the answers that a run is judged by: to the test split, else to validation."""
    return next((found for split in _JUDGED if (found := run.answers.get(split))), None)


def calibration(run: Run) -> Calibration | None:
    """Return whether a run's probabilities are what they say; None where it has none."""
    answers, validation = judged(run), run.answers.get("validation")
    if answers is None or answers.probabilities is None:
        return None
    shares, true = questions(answers)
    plain = Calibration(answers.split, calibration_error(shares, true), reliability(shares, true))
    if validation is None:
        return plain
    temperature = fit_temperature(*questions(validation))
    cooled = at_temperature(shares, temperature)
    return Calibration(
        plain.split,
        plain.error,
        plain.bins,
        temperature,
        calibration_error(cooled, true),
        reliability(cooled, true),
        tune_threshold(validation, [answers] if answers is not validation else []),
    )


def calibration_lines(found: Calibration) -> list[str]:
    """Return the calibration as sentences."""
    lines = [f"Expected calibration error on the {found.split} split: {found.error:.3f}"]
    if found.temperature is not None:
        lines[0] += f"; {found.error_at_temperature:.3f} at temperature {found.temperature:.2f}, fitted on validation"
    lines[0] += "."
    if found.threshold is not None:
        at, split = found.threshold, found.split
        lines.append(
            f"The best threshold by the macro F1 on validation is {at.value:.3f}; at it, accuracy is "
            f"{at.accuracy[split]:.3f} and macro F1 {at.f1_macro[split]:.3f} on the {split} split."
        )
    return lines


def mistakes(run: Run, most: int = _MOST_MISTAKES) -> list[Mistake]:
    """Return the mistakes that were the surest, the surest first."""
    answers = judged(run)
    if answers is None:
        return []
    surest = sorted(answers.shown, key=lambda place: -_surety(answers, place))
    return [_mistake(answers, place) for place in surest[:most]]


@dataclass(frozen=True)
class Section:
    """The part of a page that shows what one run answered, in words.

    Attributes:
        split: what was scored.
        kind: of the labels; None where the answers were not kept.
        labels: name of each label to its figures.
        confusion: name of each true class to its row: counts, and the share in percent; empty for many classes.
        pairs: of many classes the ones most often taken for another: true, answered, count.
        calibration: sentences.
        mistakes: the surest ones.
    """

    split: str
    kind: str | None
    labels: list[tuple[str, list[str]]]
    confusion: list[tuple[str, list[tuple[str, int]]]]
    pairs: list[tuple[str, str, str]]
    calibration: list[str]
    mistakes: list[Mistake]


def answers_section(run: Run) -> Section | None:
    """Return what one run answered; None where it was not scored by labels."""
    line, answers, found = scores(run), judged(run), calibration(run)
    if line is None or (line.per_label is None and answers is None):
        return None
    names = [one.name for one in line.per_label or ()]
    matrix = np.array(line.confusion) if line.confusion else None
    is_small = len(names) <= _MOST_CLASSES
    return Section(
        split=line.split,
        kind=answers.kind if answers else None,
        labels=[(one.name, label_words(one)) for one in (line.per_label or ())[:_MOST_LABELS]],
        confusion=_confusion(names, matrix) if matrix is not None and is_small else [],
        pairs=_confused(names, matrix) if matrix is not None and not is_small else [],
        calibration=calibration_lines(found) if found else [],
        mistakes=mistakes(run),
    )


def label_words(one: LabelScores) -> list[str]:
    """Return precision, recall, F1, support and number of answers of a label."""
    return [*map(words.score, (one.precision, one.recall, one.f1)), *map(words.whole, (one.support, one.num_predicted))]


def _confusion(names: list[str], matrix: NDArray[np.int64]) -> list[tuple[str, list[tuple[str, int]]]]:
    shares = np.rint(100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).astype(int)
    return [
        (name, [(words.whole(count), share) for count, share in zip(counts, row, strict=True)])
        for name, counts, row in zip(names, matrix.tolist(), shares.tolist(), strict=True)
    ]


def _confused(names: list[str], matrix: NDArray[np.int64]) -> list[tuple[str, str, str]]:
    """Return which class is taken for which most often."""
    missed = matrix - np.diag(matrix.diagonal())
    places = np.argsort(-missed, axis=None, kind="stable")[:_MOST_CLASSES]
    pairs = [(int(true), int(given)) for true, given in zip(*np.unravel_index(places, missed.shape), strict=True)]
    return [
        (names[true], names[given], words.whole(int(missed[true, given])))
        for true, given in pairs
        if missed[true, given]
    ]


def as_plain(run: Run) -> dict[str, Any] | None:
    """Return what the answers say as plain values, ready for JSON; None where none were kept."""
    found = calibration(run)
    if judged(run) is None:
        return None
    return {"calibration": asdict(found) if found else None, "mistakes": [asdict(one) for one in mistakes(run)]}


def _surety(answers: Answers, place: int) -> float:
    """Return how sure a wrong answer was; of a number, how far off."""
    true, given, shares = answers.labels[place], answers.answers[place], answers.probabilities
    if shares is None:
        return float(abs(given - true))
    return float(
        np.maximum(shares[place], 1 - shares[place])[given != true].max() if true.ndim else shares[place].max()
    )


def _mistake(answers: Answers, place: int) -> Mistake:
    shown, true, given = answers.shown[place], answers.labels[place], answers.answers[place]
    surety = _surety(answers, place)
    if answers.kind == "regression":
        return Mistake(shown.text, shown.where, f"{true:.4g}", f"{given:.4g}", f"{surety:.4g}")
    label, answer = (_several(answers, one) if answers.kind == "multi" else answers.names[one] for one in (true, given))
    return Mistake(shown.text, shown.where, label, answer, words.percent(surety))


def _several(answers: Answers, has: Any) -> str:
    return ", ".join(name for name, is_so in zip(answers.names, has, strict=True) if is_so) or "none"
