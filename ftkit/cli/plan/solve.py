"""The largest value of an axis that fits, as lines of text."""

import json
from typing import TYPE_CHECKING

import click

from ftkit.cli.plan.prediction import prediction_lines
from ftkit.cli.plan.writing import train_command, write_config
from ftkit.errors import DoesNotFitError

if TYPE_CHECKING:
    from pathlib import Path

    from ftkit.config.tree import RunConfig
    from ftkit.plan.choices.solve import Axis, Solution
    from ftkit.plan.inputs.target import Target

AXES = ("max_length", "micro_batch_size", "rank", "model")


def show_solution(
    config: "RunConfig", target: "Target", axis: "Axis", samples: int | None, write: "Path | None", *, as_json: bool
) -> None:
    """Print the largest value of an axis that fits, and write the run with it.

    Args:
        config: the run.
        target: where it would run.
        axis: what is as large as can be.
        samples: training sequences; None: not known.
        write: the file that takes the run as YAML; None: none does.
        as_json: print the value and its prediction as JSON, and nothing else.

    Raises:
        DoesNotFitError: not even the smallest fits.
    """
    from ftkit.plan.choices.solve import solve

    found = solve(config, target, axis, samples)
    if found is None:
        raise DoesNotFitError(
            f"not even the smallest {axis} fits on {target.name}; `ftkit plan` without --solve names what would"
        )
    for line in found.settled.lines:
        click.echo(f"note: {line}", err=True)
    if write is not None:
        write_config(write, found.config, target)
    if as_json:
        prediction = found.prediction.model_dump(mode="json")
        click.echo(json.dumps({"changes": found.changes, "next": found.next_value, "prediction": prediction}))
        return
    click.echo("\n".join(_lines(found, axis, target)))
    click.echo(train_command(found.config, target, write))


def _lines(found: "Solution", axis: "Axis", target: "Target") -> list[str]:
    from ftkit.engine.resolve import resolve
    from ftkit.plan.choices.changes import as_flags

    border = "the most that there is" if found.next_value is None else f"{found.next_value}: {found.next_reason}"
    run = resolve(found.config, target.devices)
    return [
        f"{'largest ' + axis:30} {next(iter(found.changes.values()))}",
        f"{'as flags':30} {as_flags(found.changes)}",
        f"{'the next larger':30} {border}",
        *prediction_lines(found.prediction, run, target),
    ]
