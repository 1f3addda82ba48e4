"""How large was the peak? What each row's own stack did, traced, beside what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import stacks, truth_table
from benchmarks.rows import Row
from benchmarks.runner import ROOT, Answer, Question

METRICS = ("allocated_peak", "active_peak", "reserved_peak", "nvml_device")
"""What a trace has a figure of (`stacks.traced.figure`)."""


def is_compared(row: Row) -> bool:
    """Return whether a row's length is known, and all but one or two facts beside it."""
    return row["length_known"] and row["confidence"] in ("high", "medium")


def reason_not_answered(row: Row) -> str | None:
    """Return why nothing is said of a row, or None."""
    if row["value_bytes"] is None:
        return "it did not fit, so that there is no peak"
    if row["metric_class"] not in METRICS:
        return f"which bytes were measured is not known ({row['metric_class']})"
    return stacks.reason_not_traced(row)


def judges(row: Row) -> list[str]:
    """Return the stack that can trace a row, if the row is compared."""
    return stacks.tracers(row) if is_compared(row) and reason_not_answered(row) is None else []


def answer(judge: str, row: Row, found: Any) -> Answer:
    """Return the bytes that a trace gives for what a row measured."""
    from benchmarks.stacks.traced import events_of, figure, reserved_peak

    said = {
        "stack": stacks.stack_name(judge),
        "predicted_bytes": figure(row, found),
        "versions": stacks.versions_of(judge),
    }
    if row["metric_class"] == "allocated_peak" and "reserved_peak_bytes" in (row["extra_metrics"] or {}):
        said["reserved_bytes"] = reserved_peak(row, events_of(found))
    return said


def line(row: Row, answer: Answer) -> str:
    """Return measured and predicted bytes in words."""
    measured, predicted = row["value_bytes"], answer["predicted_bytes"]
    assert measured is not None
    return f"{measured / 1e9:8.3f} GB  {predicted / 1e9:8.3f} GB  {predicted / measured - 1:+.2%}"


def table(rows: Sequence[Row], answers: Mapping[str, Answer]) -> str:
    """Return the page."""
    return truth_table.page([row for row in rows if is_compared(row)], answers, reason_not_answered, stacks.open_fact)


QUESTION = Question(
    name="truth",
    page=ROOT / "docs" / "truth.md",
    judges=judges,
    traced=lambda row: row,
    key=lambda _, row: row["id"],
    answer=answer,
    line=line,
    table=table,
)
