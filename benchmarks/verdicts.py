"""Does it fit? Published runs that fitted their card, and those that did not, beside the planner's answers.

Each row is judged by the trace of its own stack where benchmarks/stacks has one, and by `ftkit plan`'s prediction where
ftkit can be told the same configuration. A run fits when every request of the replayed steps is met in the card's
memory less what the driver takes (OLDER_BYTES of ftkit.machine.contexts); where segments of fixed size do not
meet it, those that grow are tried.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import own_plan, stacks, verdict_table
from benchmarks.rows import Row, card, has_length, room
from benchmarks.runner import ROOT, Answer, Question
from ftkit.machine.hardware import GIB

OWN = "ftkit"
"""The judge that is not the trace of a stack: ftkit's own plan."""


def judges(row: Row) -> list[str]:
    """Return who can say whether a row fits: its stack, ftkit's own plan, both or nobody."""
    if card(row) is None or not has_length(row):
        return []
    return stacks.tracers(row) + ([OWN] if own_plan.reason_not_planned(row) is None else [])


def why_nobody(row: Row) -> str:
    """Return why nobody says anything of a row."""
    if card(row) is None:
        return "its card is not named, or is not in ftkit's table"
    if not has_length(row):
        return "neither its length nor a cap is known"
    if judges(row):
        return "not run"
    return f"stack: {stacks.reason_not_traced(row)}; ftkit: {own_plan.reason_not_planned(row)}"


def answer(judge: str, row: Row, found: Any) -> Answer:
    """Return what one judge says of a row: bytes, and whether they fit."""
    gpu = card(row)
    assert gpu is not None
    if judge == OWN:
        return own_plan.judge(row, gpu)
    from benchmarks.stacks.traced import events_of
    from ftkit.observe.allocator import replay

    events = events_of(found)
    free, capped, grown = replay(events), replay(events, room(row)), replay(events, room(row), expandable=True)
    return {
        "active_bytes": free.peak_active_bytes,
        "reserved_bytes": free.peak_reserved_bytes,
        "fits": capped.fits,
        "fits_grown": grown.fits,
    }


def line(_: Row, answer: Answer) -> str:
    """Return a verdict in words."""
    return f"{answer['reserved_bytes'] / GIB:7.2f} GiB  fits {answer['fits']}"


def table(rows: Sequence[Row], answers: Mapping[str, Answer]) -> str:
    """Return the page."""
    return verdict_table.page(rows, answers, room, why_nobody)


QUESTION = Question(
    name="verdicts",
    page=ROOT / "docs" / "verdicts.md",
    judges=judges,
    traced=lambda row: row,
    key=lambda judge, row: f"{row['id']} {stacks.stack_name(judge)}",
    answer=answer,
    line=line,
    table=table,
)
