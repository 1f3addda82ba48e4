"""The fastest configurations that fit, as lines of text."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ftkit.cli.plan.prediction import prediction_lines
from ftkit.cli.plan.writing import train_command, write_config
from ftkit.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftkit.cli.plan.asked import Asked
    from ftkit.plan.choices.candidates import Candidate

SHOWN = 10
"""Candidates of a search that are printed; --json has all of them."""


def show_search(asked: "Asked", write: "Path | None", *, as_json: bool) -> None:
    """Print what fits, the best first, and write the best.

    Args:
        asked: where the search starts.
        write: the file that takes the best as YAML; None: none does.
        as_json: print all that was found as JSON, and nothing else.

    Raises:
        DoesNotFitError: nothing fits.
    """
    from ftkit.engine.resolve import resolve
    from ftkit.errors import DoesNotFitError
    from ftkit.plan.choices.search import confirmed, search

    target, found = asked.options.target, search(*asked)
    kept, checked = confirmed(found[:SHOWN], asked.options)
    if checked is None:
        raise DoesNotFitError(_nothing_fits(asked))
    found = [*kept, *found[SHOWN:]]
    if write is not None:
        write_config(write, found[0].config, target)
    if as_json:
        rows = [{"changes": one.changes, "prediction": one.prediction.model_dump(mode="json")} for one in found]
        click.echo(json.dumps(rows))
        return
    run = resolve(found[0].config, target.devices)
    click.echo("\n".join([*search_lines(found[:SHOWN]), *prediction_lines(checked, run, target)]))
    click.echo(train_command(found[0].config, target, write))


def _nothing_fits(asked: "Asked") -> str:
    """Say what a search ran into: the device, or the memory of the host."""
    from ftkit.plan.choices.changes import as_flags
    from ftkit.plan.choices.search import search
    from ftkit.plan.needs.bare import beyond_any_model

    target = asked.options.target
    left = beyond_any_model(target) or "choose a smaller model, a smaller --max-length or --method qlora"
    if target.gpu is not None and (target.ram_bytes is not None or target.locked_bytes is not None):
        roomy = replace(target, ram_bytes=None, locked_bytes=None)
        found = search(asked.config, replace(asked.options, target=roomy))
        if found:
            least = min(found, key=lambda one: one.prediction.host_bytes)
            have = "the host's" if target.ram_bytes is None else f"the {format_bytes(target.ram_bytes)} of host"
            return (
                f"nothing fits in {have} memory; on {target.name} {as_flags(least.changes) or 'it'} would fit, with "
                f"{format_bytes(least.prediction.host_bytes)} of host memory (--ram-budget)"
            )
    return f"nothing fits on {target.name}; {left}"


def search_lines(found: "Sequence[Candidate]") -> list[str]:
    """Return candidates as lines of text: memory of the device and of the host, and time beside the fastest."""
    from ftkit.plan.choices.changes import as_flags

    fastest = min(one.seconds for one in found)
    lines = [f"{'':4}{'peak':>10}  {'host':>10}  {'a step':>9}  {'slower':>7}  changes"]
    for number, candidate in enumerate(found, start=1):
        seconds = f"{candidate.seconds:.3g} s" if fastest else "?"
        slower = f"{candidate.seconds / fastest - 1:.1%}" if fastest else "?"
        lines.append(
            f"{number:2}. {format_bytes(candidate.needed_bytes):>10}  "
            f"{format_bytes(candidate.prediction.host_bytes):>10}  {seconds:>9}  {slower:>7}  "
            f"{as_flags(candidate.changes) or 'as it is'}"
        )
    return lines
