"""The data of the page's charts and of its unfolded rows: plain values, ready for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ftkit.config.files import unusual_values
from ftkit.records.figures import Kind, LiveTensor, MemoryBreakdown
from ftkit.records.schema import PhaseMeasurement, TimelineLine
from ftkit.report import words
from ftkit.report.answered import calibration, label_words
from ftkit.report.collect import Run
from ftkit.report.columns import COLUMNS, MEMORY_FIGURES, scores
from ftkit.report.compare import efficient_front
from ftkit.report.planned.streamed import window_words

Plain = dict[str, Any]

_CURVES = (
    ("Training loss", None, "loss"),
    ("Validation loss", "validation", "loss"),
    ("Validation accuracy", "validation", "accuracy"),
    ("Validation F1 (macro)", "validation", "f1_macro"),
    ("Validation perplexity", "validation", "perplexity"),
    ("Validation exact match", "validation", "exact_match"),
    ("Validation F1 (micro)", "validation", "f1_micro"),
    ("Validation Pearson", "validation", "pearson"),
    ("Validation RMSE", "validation", "rmse"),
)
_SHARES = {"accuracy", "f1_macro", "f1_micro", "exact_match"}
"""Figures from 0 to 1, whose axes end there."""
_POINTS_OF_A_CURVE = 400
_SHOWN_LABELS = 100
_SHOWN_CLASSES = 20
"""More than a screen can show; the record has them all."""


def chart_data(runs: Sequence[Run], labels: Sequence[str], budget_bytes: int | None) -> Plain:
    """Return everything that the page's scripts need.

    Args:
        runs: the rows, in order; a run's position is its number in the page.
        labels: one for each run.
        budget_bytes: the memory that there is, drawn as a line; None: no line.

    Returns:
        Lists, mappings, texts and numbers; bytes and seconds as they are.
    """
    return {
        "budget": budget_bytes,
        "kinds": list(Kind),
        "figures": [
            {"key": key, "heading": heading, "front": efficient_front(runs, key)}
            for key, (heading, _) in MEMORY_FIGURES.items()
            if any(getattr(run.measured, key) for run in runs)
        ],
        "curves": [title for title, _, _ in _CURVES],
        "shares": [field in _SHARES for _, _, field in _CURVES],
        "reliability": _reliability(runs[0]) if len(runs) == 1 else None,
        "runs": [_run_data(run, label) for run, label in zip(runs, labels, strict=True)],
    }


def _run_data(run: Run, label: str) -> Plain:
    measured, predicted = run.measured, run.predicted
    return {
        "name": run.name,
        "label": label,
        "method": words.method_name(run),
        "engine": words.engine(run),
        "status": run.status,
        "reason": run.reason,
        "measured": {key: getattr(measured, key) for key in MEMORY_FIGURES},
        "predicted": {key: getattr(predicted, key) for key in MEMORY_FIGURES},
        "tokensPerSecond": measured.tokens_per_second,
        "breakdown": _kinds(measured.peak_breakdown),
        "predictedBreakdown": _kinds(predicted.peak_breakdown),
        "curves": [_curve(run, split, field) for _, split, field in _CURVES],
        "timeline": _timeline(run.record.timeline, run) if run.record.timeline else None,
        "details": _details(run),
    }


def _reliability(run: Run) -> Plain | None:
    """Return the bins of confidence and accuracy, as answered and at the fitted temperature."""
    found = calibration(run)
    if found is None:
        return None
    return {
        "plain": [asdict(one) for one in found.bins],
        "cooled": [asdict(one) for one in found.bins_at_temperature or ()],
        "temperature": found.temperature,
    }


def _kinds(breakdown: MemoryBreakdown | None) -> list[int] | None:
    return [getattr(breakdown, kind.field) for kind in Kind] if breakdown else None


def _curve(run: Run, split: str | None, field: str) -> Plain | None:
    """Return the points of a curve against steps and epochs, thinned for a screen; None of a lone point."""
    lines: Sequence[Any] = (
        run.record.steps if split is None else [line for line in run.record.evaluations if line.split == split]
    )
    points = [(line.step, line.epoch, value) for line in lines if (value := getattr(line, field)) is not None]
    if len(points) < 2:
        return None
    stride = -(-len(points) // _POINTS_OF_A_CURVE)
    thinned = points[:-1:stride] + points[-1:]
    return {
        "step": [step for step, _, _ in thinned],
        "epoch": [round(epoch, 3) for _, epoch, _ in thinned],
        "value": [float(f"{value:.5g}") for _, _, value in thinned],
    }


def _timeline(line: TimelineLine, run: Run) -> Plain:
    known = [kind for kind in Kind if kind in line.live_bytes]
    totals = [sum(parts) for parts in zip(*(line.live_bytes[kind] for kind in known), strict=True)]
    peak = max(range(len(totals)), key=totals.__getitem__)
    return {
        "events": line.events,
        "phases": line.phases,
        "window": [window_words(layers) for layers in line.window] or None,
        "kinds": {kind: line.live_bytes[kind] for kind in known},
        "peak": peak,
        "explanation": explain_peak(line, run, peak),
    }


def explain_peak(line: TimelineLine, run: Run, peak: int) -> str:
    """Say in words what a step's peak is made of.

    Args:
        line: the timeline.
        run: its run, for the largest tensors.
        peak: the position of the peak on the timeline.

    Returns:
        Two or three sentences.
    """
    parts = sorted(((values[peak], kind) for kind, values in line.live_bytes.items()), reverse=True)
    total = sum(size for size, _ in parts)
    shares = [f"{kind} {words.size(size)} ({100 * size / total:.0f} %)" for size, kind in parts if size > 0.02 * total]
    sentence = f"Step {line.step} peaks at {words.size(total)} in the {line.phases[peak]}: {', '.join(shares)}."
    largest = line.largest_tensors or run.measured.largest_tensors
    if largest:
        first = largest[0]
        sentence += f" The largest tensor, {words.size(first.num_bytes)} of {first.kind}, was made in {first.module}."
    if line.window:
        sentence += f" The window of streamed layers holds {window_words(line.window[peak])} then."
    return sentence


def _details(run: Run) -> list[Plain]:
    """Return what a row unfolds to: small tables, each with a title and rows of texts."""
    line, measured = run.record.run, run.measured
    figures = [[column.heading, shown] for column in COLUMNS if column.key != "name" and (shown := column.show(run))]
    tables = [{"title": "Figures", "rows": figures}]
    tables += _answers(run)
    if measured.phases:
        tables.append(_phases(measured.phases))
    if measured.largest_tensors:
        tables.append(
            {
                "title": "Largest tensors at the peak",
                "head": ["Size", "Kind", "Shape", "Made in", "By"],
                "rows": [
                    [words.size(tensor.num_bytes), tensor.kind, _shape(tensor), tensor.module, tensor.op]
                    for tensor in measured.largest_tensors
                ],
            }
        )
    tables.append({"title": "Settings that differ from the defaults", "rows": changed_settings(line.config)})
    tables.append({"title": "Versions", "rows": [list(pair) for pair in line.versions.items()]})
    return [table for table in tables if table["rows"]]


def _answers(run: Run) -> list[Plain]:
    """Return how each label is answered, and what is taken for what."""
    line = scores(run)
    if line is None or line.per_label is None:
        return []
    tables: list[Plain] = [
        {
            "title": f"Each label on the {line.split} split",
            "head": ["Label", "Precision", "Recall", "F1", "Rows", "Answered"],
            "rows": [[one.name, *label_words(one)] for one in line.per_label[:_SHOWN_LABELS]],
        }
    ]
    names = [one.name for one in line.per_label]
    if line.confusion and len(names) <= _SHOWN_CLASSES:
        tables.append(
            {
                "title": f"Answers on the {line.split} split (row: the true label)",
                "head": ["", *names],
                "rows": [[name, *map(words.whole, row)] for name, row in zip(names, line.confusion, strict=True)],
            }
        )
    return tables


def _phases(phases: Sequence[PhaseMeasurement]) -> Plain:
    """Return the peaks of each rank and phase, without the columns that nobody took."""
    fields = {"peak_active_bytes": "Live", "peak_reserved_bytes": "Reserved", "peak_process_bytes": "Process"}
    fields |= {"host_bytes": "Host"}
    taken = [field for field in fields if any(getattr(phase, field) is not None for phase in phases)]
    return {
        "title": "Peaks by phase",
        "head": ["Rank", "Phase", *(fields[field] for field in taken)],
        "rows": [[str(one.rank), one.phase, *(_size(getattr(one, field)) for field in taken)] for one in phases],
    }


def changed_settings(config: Plain) -> list[list[str]]:
    """Return the settings of a configuration that are not what ftkit would have chosen.

    Args:
        config: a dumped RunConfig, perhaps of another schema.

    Returns:
        Pairs of dotted key and value.
    """
    return [[key, str(value)] for key, value in unusual_values(config).items()]


def _shape(tensor: LiveTensor) -> str:
    return f"{' x '.join(map(str, tensor.shape))} {tensor.dtype}".strip()


def _size(count: int | None) -> str:
    return "" if count is None else words.size(count)
