"""The cost and the saving of each knob from where a run is, and the wall of each axis, as lines of text."""

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click

from ftkit.cli.plan.writing import train_command
from ftkit.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ftkit.cli.plan.asked import Asked
    from ftkit.plan.choices.advise import Advice
    from ftkit.plan.choices.candidates import Candidate
    from ftkit.plan.choices.solve import Axis, Solution
    from ftkit.plan.inputs.target import Target

_HEAD = f"{'':4}{'peak':>10} {'':>11}  {'a step':>8} {'':>7}  {'verdict':12}  change"


def show_advice(asked: "Asked", *, as_json: bool) -> bool:
    """Print a run beside what it would be with each single change, and the largest values that fit.

    Args:
        asked: the run at its target.
        as_json: print all of it as JSON, and nothing else.

    Returns:
        Whether the run fits as it is.
    """
    from ftkit.plan.choices.advise import advise, walls

    advice, found, target = advise(*asked), walls(*asked), asked.options.target
    if as_json:
        click.echo(json.dumps(advice_tree(advice, found, target)))
        return advice.present.prediction.fits
    for lines in (advice_lines(advice, target), wall_lines(found, target)):
        for line in lines:
            click.echo(line)
    return advice.present.prediction.fits


def advice_lines(advice: "Advice", target: "Target") -> list[str]:
    """Return a run and its changes as a table, and how a change is made."""
    from ftkit.plan.choices.changes import as_flags

    lines = [_HEAD, _row("", advice.present, None, "as it is")]
    effect = None
    for number, knob in enumerate(advice.knobs, start=1):
        if knob.effect is not effect:
            effect = knob.effect
            lines.append(f"{effect}:")
        lines.append(_row(f"{number}.", knob.candidate, advice.present, as_flags(knob.candidate.changes)))
    command = train_command(advice.present.config, target, None)
    return [*lines, "the flags of a change go behind:", f"  {command}", *_refused_lines(advice)]


def _refused_lines(advice: "Advice") -> "Iterator[str]":
    """Yield the changes that this run does not go with, those of one reason together."""
    from ftkit.plan.choices.changes import as_flags

    by_reason: dict[str, list[str]] = defaultdict(list)
    for one in advice.refused:
        by_reason[" ".join(one.reason.split())].append(as_flags(one.changes))
    if by_reason:
        yield "left out, since this run does not go with them:"
    for reason, changes in by_reason.items():
        yield f"  {', '.join(changes)}"
        yield f"    {reason}"


def _row(number: str, candidate: "Candidate", present: "Candidate | None", change: str) -> str:
    seconds = f"{candidate.seconds:.3g} s" if candidate.seconds else "?"
    more = slower = ""
    if present is not None:
        difference = candidate.needed_bytes - present.needed_bytes
        more = ("+" if difference >= 0 else "-") + format_bytes(abs(difference))
        slower = f"{candidate.seconds / present.seconds - 1:+.0%}" if present.seconds else ""
    peak = format_bytes(candidate.needed_bytes)
    return f"{number:>3} {peak:>10} {more:>11}  {seconds:>8} {slower:>7}  {candidate.prediction.verdict:12}  {change}"


def wall_lines(walls: "Iterable[tuple[Axis, Solution | None]]", target: "Target") -> "Iterator[str]":
    """Yield the largest value of each axis, why the next one is too large, and the command with it."""
    yield "the largest that still fits, all else as it is:"
    for axis, solution in walls:
        if solution is None:
            yield f"  {axis:17} not even the smallest fits"
            continue
        value, prediction = next(iter(solution.changes.values())), solution.prediction
        border = "the most that there is"
        if solution.next_value is not None:
            border = f"{solution.next_value} {solution.next_reason}"
        yield f"  {axis:17} {value:<7} {format_bytes(prediction.peak_process_bytes):>10}  ({border})"
        yield f"    {train_command(solution.config, target, None)}"


def advice_tree(advice: "Advice", walls: "Iterable[tuple[Axis, Solution | None]]", target: "Target") -> dict[str, Any]:
    """Return a run, its changes and the largest values as a tree for JSON, each with its command and its prediction."""

    def as_tree(one: "Candidate | Solution") -> dict[str, Any]:
        command, prediction = train_command(one.config, target, None), one.prediction.model_dump(mode="json")
        return {"changes": one.changes, "command": command, "prediction": prediction}

    knobs = [as_tree(knob.candidate) | {"effect": knob.effect.name.lower()} for knob in advice.knobs]
    largest = {
        axis: found and as_tree(found) | {"next": found.next_value, "reason": found.next_reason}
        for axis, found in walls
    }
    refused = [{"changes": one.changes, "reason": one.reason} for one in advice.refused]
    return {"present": as_tree(advice.present), "changes": knobs, "refused": refused, "largest": largest}
