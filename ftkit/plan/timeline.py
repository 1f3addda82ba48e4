"""What a tape says of memory: the worst moment, what it is made of, and where in the step it falls."""

from collections.abc import Callable
from dataclasses import dataclass

from ftkit.plan.allocator import round_size
from ftkit.plan.tape import BACKWARD, FORWARD, LOAD, OPTIMIZER, Birth, Tape
from ftkit.records import MemoryBreakdown


@dataclass(frozen=True)
class Peak:
    """The worst moment.

    Attributes:
        active_bytes: live storages, rounded as the allocator rounds them.
        breakdown: its parts.
        phase: `load`, `forward`, `backward` or `optimizer`.
        step: the optimizer step, from 1.
        module: the innermost module at work, empty where none is.
        layer: the layer at work, from 0.
    """

    active_bytes: int
    breakdown: MemoryBreakdown
    phase: str
    step: int
    module: str
    layer: int | None


_ROLES = {"trainable": "parameter", "constant": "parameter", "input": "buffer"}
"""What was named on the tape, and the part of a breakdown that it is; any other name is one already."""


def kinds(tape: Tape) -> list[str]:
    """Return for each storage the part of a breakdown that it belongs to, judged by when it was born and died.

    What a forward leaves behind for the backward is an activation, and so is what a recomputation makes; what a
    backward leaves behind is a gradient; what the optimizer leaves behind, or made while loading, is its
    state. The rest is temporary.
    """
    survived = _survivors(tape)
    return [_kind(number, birth, survived) for number, birth in enumerate(tape.births)]


def find_peak(tape: Tape, rounding: Callable[[int], int] = round_size) -> Peak:
    """Return the worst moment of a tape.

    Args:
        tape: of whole steps.
        rounding: bytes asked to bytes taken; the CUDA allocator's by default.

    Returns:
        The first moment at which most bytes were live.
    """
    worst, at = 0, -1
    for place, live in enumerate(tape.live_bytes(rounding)):
        if live > worst:
            worst, at = live, place
    parts = dict.fromkeys(MemoryBreakdown.model_fields, 0)
    names = kinds(tape)
    for storage in live_at(tape, at):
        parts[f"{names[storage]}_bytes"] += rounding(tape.births[storage].size)
    if at < 0:
        return Peak(0, MemoryBreakdown(), LOAD, 0, "", None)
    last = tape.births[tape.events[at][0]]
    return Peak(worst, MemoryBreakdown(**parts), last.phase, last.step, last.module, tape.events[at][1])


def allocator_events(tape: Tape) -> list[tuple[int, int]]:
    """Return the tape as the allocator model reads it: (storage, bytes) for births, (storage, -1) for deaths."""
    return [
        (event, tape.births[event].size) if event >= 0 else (~event, -1)
        for event, _ in tape.events
        if tape.births[event if event >= 0 else ~event].size
    ]


def _survivors(tape: Tape) -> set[int]:
    """Return the storages that outlived the phase they were born in."""
    survived: set[int] = set()
    begin = 0
    for place, _ in [*tape.marks, (len(tape.events), "")]:
        born: set[int] = set()
        for event, _ in tape.events[begin:place]:
            if event >= 0:
                born.add(event)
            else:
                born.discard(~event)
        survived |= born
        begin = place
    return survived


def _kind(number: int, birth: Birth, survived: set[int]) -> str:
    if birth.role:
        return _ROLES.get(birth.role, birth.role)
    if birth.phase == LOAD:
        return "optimizer"
    if birth.recomputed or (birth.phase == FORWARD and number in survived):
        return "activation"
    if number not in survived:
        return "temporary"
    return {BACKWARD: "gradient", OPTIMIZER: "optimizer"}.get(birth.phase, "temporary")


def live_at(tape: Tape, place: int) -> set[int]:
    """Return the storages that live after the event at `place`."""
    live: set[int] = set()
    for event, _ in tape.events[: place + 1]:
        if event >= 0:
            live.add(event)
        else:
            live.discard(~event)
    return live
