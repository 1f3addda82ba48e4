"""`ftkit plan`: what a configuration needs, before any of it runs."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftkit.cli.options import config_options, quieten, read_config, user_errors
from ftkit.config.files import as_settings, dump_config
from ftkit.machine.hub import work_offline_if_unreachable
from ftkit.machine.memory import quiet_collector
from ftkit.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ftkit.config.tree import RunConfig
    from ftkit.plan.search import Candidate
    from ftkit.plan.shapes import Sequences
    from ftkit.plan.target import Target
    from ftkit.records.schema import Prediction

SHOWN = 10
"""Candidates of a search that are printed; --json has all of them."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@config_options
@click.option("--gpu", help="Where to run: t4, rtx3060, a100-40gb, ...; this machine when not named.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="How many of them.")
@click.option("--memory-budget", metavar="SIZE", help="What one device has, such as 8GiB.")
@click.option("--ram-budget", metavar="SIZE", help="What the host has.")
@click.option("--samples", type=click.IntRange(min=1), help="Training sequences, for the number of steps.")
@click.option("--search", "is_search", is_flag=True, help="Rank what fits by speed, and write the winner.")
@click.option("--write", type=click.Path(path_type=Path), help="Where --search writes the winner, as YAML for train.")
@click.option("--exact", is_flag=True, help="Trace every layer instead of unrolling the layers that are alike.")
@click.option("--json", "as_json", is_flag=True, help="Print the prediction as JSON.")
def plan(  # noqa: PLR0913  # one parameter a flag
    gpu: str | None,
    gpus: int,
    memory_budget: str | None,
    ram_budget: str | None,
    samples: int | None,
    write: Path | None,
    *,
    is_search: bool,
    exact: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Predict memory, speed and disk of a configuration, on any GPU, without that GPU.

    Takes the flags of `ftkit train`. Exits with 8 where the configuration does not fit.
    """
    # The collector would take a sixth of a plan's time, and finds nothing in what the imports bring.
    with user_errors(), quiet_collector(trusts=True):
        config = read_config(flags)
        from ftkit.plan.architectures import find_architecture, find_row

        if find_row(config.model.name) is None:
            work_offline_if_unreachable((config.model.name,))
        quieten()
        from ftkit.plan.predict import Tapes, predict
        from ftkit.plan.search import settled
        from ftkit.plan.shapes import Sequences
        from ftkit.plan.target import find_target

        sequences = None if samples is None else Sequences.unseen(config, samples)
        target = find_target(gpu, gpus, memory_budget, ram_budget)
        architecture = find_architecture(config)
        tapes: Tapes = {}
        config = settled(config, target, architecture, sequences, tapes)
        if is_search:
            _search(config, target, sequences, write, as_json=as_json)
            return
        prediction = predict(config, target, architecture, sequences=sequences, exact=exact, tapes=tapes)
        if as_json:
            click.echo(prediction.model_dump_json())
        else:
            click.echo("\n".join(prediction_lines(prediction, gpus)))
            if not prediction.fits:
                _show_cures(config, target, sequences)
    if not prediction.fits:
        click.get_current_context().exit(8)


def prediction_lines(prediction: "Prediction", num_devices: int = 1) -> list[str]:
    """Return a prediction as lines of text."""
    verdict = "fits" if prediction.fits else f"does not fit: {prediction.reason}"
    rows = [
        (
            "verdict",
            f"{verdict} ({num_devices} x {prediction.device}, {format_bytes(prediction.budget_bytes or 0)} each)",
        ),
        ("step", _shape(prediction)),
        ("peak, as the system shows it", format_bytes(prediction.peak_process_bytes or 0)),
        *_part_rows(prediction),
        ("where", _where(prediction)),
        (
            "host memory",
            f"{format_bytes(prediction.host_bytes or 0)}, of it pinned {format_bytes(prediction.pinned_bytes or 0)}",
        ),
        ("disk", format_bytes((prediction.disk_bytes or 0) + (prediction.nvme_bytes or 0))),
        (
            "weights",
            f"{format_count(prediction.num_parameters or 0)}, of them "
            f"{format_count(prediction.num_trainable_parameters or 0)} train",
        ),
        *_time_rows(prediction),
        ("found", prediction.basis or ""),
    ]
    return [f"{name:30} {value}" for name, value in rows]


def _shape(prediction: "Prediction") -> str:
    return (
        f"{prediction.num_micro_batches} x {prediction.micro_batch_size} sequences "
        f"of {prediction.sequence_length} tokens on each device, {prediction.precision}"
    )


def _part_rows(prediction: "Prediction") -> list[tuple[str, str]]:
    parts = dict(prediction.peak_breakdown.model_dump()) if prediction.peak_breakdown else {}
    rows = [(f"  {name.removesuffix('_bytes')}", format_bytes(size)) for name, size in parts.items()]
    if prediction.peak_reserved_bytes is not None and prediction.peak_active_bytes is not None:
        rows.append(("  fragmentation", format_bytes(prediction.peak_reserved_bytes - prediction.peak_active_bytes)))
    return [*rows, ("  context", format_bytes(prediction.context_bytes or 0))]


def _where(prediction: "Prediction") -> str:
    place = prediction.peak_module or (
        "the loss" if prediction.peak_layer is None else f"layer {prediction.peak_layer}"
    )
    return f"{prediction.peak_phase}, {place}"


def _time_rows(prediction: "Prediction") -> list[tuple[str, str]]:
    if prediction.step_seconds is None or prediction.tokens_per_second is None:
        return [("speed", "not predicted")]
    rows = [
        (
            "speed, at best",
            f"{prediction.step_seconds:.3g} s a step, {format_count(prediction.tokens_per_second)} tokens/s",
        )
    ]
    time = "give --samples, the number of training sequences"
    if prediction.num_steps is not None and prediction.total_seconds is not None:
        time = f"{format_seconds(prediction.total_seconds)} for {prediction.num_steps} steps"
    return [*rows, ("time, at best", time)]


def _show_cures(config: "RunConfig", target: "Target", sequences: "Sequences | None") -> None:
    from ftkit.plan.search import as_flags, cures

    found = cures(config, target, sequences=sequences)
    click.echo(
        "what would fit:" if found else "nothing that ftkit can change makes it fit; choose a smaller model or length"
    )
    for candidate in found:
        click.echo(f"  {as_flags(candidate.changes)}: {_cost(candidate)}")


def _search(
    config: "RunConfig", target: "Target", sequences: "Sequences | None", write: Path | None, *, as_json: bool
) -> None:
    from ftkit.errors import DoesNotFitError
    from ftkit.plan.predict import predict
    from ftkit.plan.search import search

    found = search(config, target, sequences=sequences)
    if not found:
        raise DoesNotFitError(
            f"nothing fits on {target.name}; choose a smaller model, a shorter data.max_length or 4 bits"
        )
    best = found[0]
    if write is not None:
        write.write_text(dump_config(best.config), encoding="utf-8")
    if as_json:
        rows = [{"changes": one.changes, "prediction": one.prediction.model_dump(mode="json")} for one in found]
        click.echo(json.dumps(rows))
        return
    for line in search_lines(found[:SHOWN]):
        click.echo(line)
    checked = predict(best.config, target, sequences=sequences, exact=True)
    click.echo("\n".join(prediction_lines(checked, target.num_devices)))
    if write is not None:
        click.echo(f"ftkit train --config {shlex.quote(str(write))}")
    else:
        settings = (f"--set {shlex.quote(setting)}" for setting in as_settings(best.config))
        click.echo(" ".join(("ftkit train", *settings)))


def search_lines(found: "Sequence[Candidate]") -> list[str]:
    """Return candidates as lines of text, each with what it costs and what it leaves free beside the fastest."""
    from ftkit.plan.search import as_flags

    fastest = found[0].prediction.step_seconds or 1.0
    lines = [f"{'':4}{'peak':>10}  {'a step':>9}  {'slower':>7}  changes"]
    for number, candidate in enumerate(found, start=1):
        seconds = candidate.prediction.step_seconds or 0.0
        lines.append(
            f"{number:2}. {format_bytes(candidate.needed_bytes):>10}  {seconds:7.3g} s  {seconds / fastest - 1:7.1%}  "
            f"{as_flags(candidate.changes) or 'as it is'}"
        )
    return lines


def _cost(candidate: "Candidate") -> str:
    prediction = candidate.prediction
    return f"{format_bytes(prediction.peak_process_bytes or 0)}, {prediction.step_seconds or 0:.3g} s a step"


if __name__ == "__main__":
    plan()
