"""`ftkit plan`: what a configuration needs, before any of it runs."""

import json
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ftkit.cli.options import config_options, quieten, read_config, user_errors
from ftkit.config.files import as_settings, dump_config
from ftkit.errors import ConfigError
from ftkit.machine.hub import work_offline_if_unreachable
from ftkit.machine.memory import quiet_collector
from ftkit.records.files import CHECKPOINT_BYTES
from ftkit.report.trunk import trunk_rows
from ftkit.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ftkit.config.tree import RunConfig
    from ftkit.engine.resolve import ResolvedRun
    from ftkit.plan.predict import Tapes
    from ftkit.plan.predicted import AnyPrediction
    from ftkit.plan.search import Candidate
    from ftkit.plan.shapes import Sequences
    from ftkit.plan.target import Target

_ASSUMED_WRITE_RATE = 200 * 2**20
"""Bytes per second: a network disk or a hard disk; a run measures its own when it starts."""
SHOWN = 10
"""Candidates of a search that are printed; --json has all of them."""


class Asked(NamedTuple):
    """What was asked for, with what has been found of it so far."""

    config: "RunConfig"
    target: "Target"
    architecture: Any
    sequences: "Sequences | None"
    tapes: "Tapes"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@config_options
@click.option("--gpu", help="Where to run: t4, rtx3060, a100-40gb, ...; this machine when not named.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="How many of them.")
@click.option("--memory-budget", metavar="SIZE", help="What one device has, such as 8GiB.")
@click.option("--ram-budget", metavar="SIZE", help="What the host has.")
@click.option("--samples", type=click.IntRange(min=1), help="Training sequences, for the number of steps.")
@click.option("--search", "is_search", is_flag=True, help="Rank what fits by speed.")
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    help="Write the configuration, if it fits, as YAML for train: that of --search, or the one that was asked for.",
)
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
        _check_file(write)
        from ftkit.plan.architectures import find_architecture, find_row

        if find_row(config.model.name) is None:
            work_offline_if_unreachable((config.model.name,))
        quieten()
        from ftkit.engine.resolve import resolve
        from ftkit.plan.predict import Tapes, predict
        from ftkit.plan.search import settled
        from ftkit.plan.shapes import Sequences
        from ftkit.plan.target import find_target

        sequences = None if samples is None else Sequences.unseen(config, samples)
        target = find_target(gpu, gpus, memory_budget, ram_budget)
        architecture = find_architecture(config)
        tapes = Tapes()
        config = settled(config, target, architecture, sequences, tapes)
        if is_search:
            _search(Asked(config, target, architecture, sequences, tapes), write, as_json=as_json)
            return
        prediction = predict(config, target, architecture, sequences=sequences, exact=exact, tapes=tapes)
        if as_json:
            click.echo(prediction.model_dump_json())
        else:
            click.echo("\n".join(prediction_lines(prediction, resolve(config, target.devices))))
            if not prediction.fits:
                _show_cures(Asked(config, target, architecture, sequences, tapes))
        if write is not None and prediction.fits:
            _write(write, config, target)
            if not as_json:
                click.echo(_train_command(config, target, write))
    if not prediction.fits:
        if write is not None:
            click.echo(f"{write} is not written: the configuration does not fit", err=True)
        click.get_current_context().exit(8)


def prediction_lines(prediction: "AnyPrediction", run: "ResolvedRun") -> list[str]:
    """Return a prediction of a run as lines of text."""
    verdict = prediction.verdict + (f": {prediction.reason}" if prediction.reason else "")
    where = f"{run.devices.world_size} x {prediction.device}, {format_bytes(prediction.budget_bytes)} each"
    rows = [
        ("verdict", f"{verdict} ({where})"),
        ("engine", _engine(run)),
        ("step", _shape(prediction)),
        ("peak, as the system shows it", _peak(prediction)),
        *_part_rows(prediction),
        ("where", _where(prediction)),
        (
            "host memory",
            f"{format_bytes(prediction.host_bytes)}, of it pinned {format_bytes(prediction.pinned_bytes)}",
        ),
        ("disk", format_bytes(prediction.disk_bytes + prediction.nvme_bytes)),
        *trunk_rows(prediction.trunk),
        ("a save", _saving(prediction.num_trainable_parameters)),
        (
            "weights",
            f"{format_count(prediction.num_parameters)}, of them "
            f"{format_count(prediction.num_trainable_parameters)} train",
        ),
        *_time_rows(prediction),
        ("found", prediction.found),
    ]
    return [f"{name:30} {value}" for name, value in rows]


def _saving(num_trainable: int) -> str:
    """Say what a checkpoint writes, and how long a disk of a stated speed takes for it."""
    num_bytes = num_trainable * CHECKPOINT_BYTES
    seconds = format_seconds(num_bytes / _ASSUMED_WRITE_RATE)
    return f"{format_bytes(num_bytes)}, about {seconds} at {format_bytes(_ASSUMED_WRITE_RATE)}/s (assumed)"


def _engine(run: "ResolvedRun") -> str:
    from ftkit.report.words import sharing

    devices = run.devices
    how = sharing(run.engine, devices.world_size, run.zero_stage, run.offload_optimizer, run.offload_parameters)
    is_asked_for = run.config.engine.name != "auto" or run.config.engine.asks_for_zero
    return how if run.zero_stage == 0 or is_asked_for else f"{how}, which the deepspeed launcher brings"


def _shape(prediction: "AnyPrediction") -> str:
    return (
        f"{prediction.num_micro_batches} x {prediction.micro_batch_size} sequences "
        f"of {prediction.sequence_length} tokens on each device, {prediction.precision}"
    )


def _peak(prediction: "AnyPrediction") -> str:
    low, high = map(format_bytes, (prediction.process_low_bytes, prediction.process_high_bytes))
    return f"{format_bytes(prediction.peak_process_bytes)}, {low} at least and {high} at most"


def _part_rows(prediction: "AnyPrediction") -> list[tuple[str, str]]:
    parts = prediction.peak_breakdown.model_dump()
    rows = [(f"  {name.removesuffix('_bytes')}", format_bytes(size)) for name, size in parts.items()]
    if prediction.peak_reserved_bytes is not None:
        rows.append(("  fragmentation", format_bytes(prediction.peak_reserved_bytes - prediction.peak_active_bytes)))
    return [*rows, ("  context", format_bytes(prediction.context_bytes))]


def _where(prediction: "AnyPrediction") -> str:
    place = prediction.peak_module or (
        "the loss" if prediction.peak_layer is None else f"layer {prediction.peak_layer}"
    )
    return f"{prediction.peak_phase}, {place}"


def _time_rows(prediction: "AnyPrediction") -> list[tuple[str, str]]:
    from ftkit.plan.predicted import FormulaPrediction

    if isinstance(prediction, FormulaPrediction):
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


def _show_cures(asked: Asked) -> None:
    from ftkit.plan.changes import as_flags
    from ftkit.plan.search import cures

    found = cures(asked.config, asked.target, asked.architecture, asked.sequences, asked.tapes)
    click.echo(
        "what would fit:" if found else "nothing that ftkit can change makes it fit; choose a smaller model or length"
    )
    for candidate in found:
        click.echo(f"  {as_flags(candidate.changes)}: {_cost(candidate)}")


def _search(asked: Asked, write: Path | None, *, as_json: bool) -> None:
    from ftkit.engine.resolve import resolve
    from ftkit.errors import DoesNotFitError
    from ftkit.plan.search import confirmed, search

    target, architecture, sequences = asked.target, asked.architecture, asked.sequences
    found = search(asked.config, target, architecture, sequences, asked.tapes)
    kept, checked = confirmed(found[:SHOWN], target, architecture, sequences)
    if checked is None:
        raise DoesNotFitError(
            f"nothing fits on {target.name}; choose a smaller model, a shorter data.max_length or 4 bits"
        )
    found = [*kept, *found[SHOWN:]]
    if write is not None:
        _write(write, found[0].config, target)
    if as_json:
        rows = [{"changes": one.changes, "prediction": one.prediction.model_dump(mode="json")} for one in found]
        click.echo(json.dumps(rows))
        return
    run = resolve(found[0].config, target.devices)
    click.echo("\n".join([*search_lines(found[:SHOWN]), *prediction_lines(checked, run)]))
    click.echo(_train_command(found[0].config, target, write))


def _check_file(write: Path | None) -> None:
    """Refuse a file that cannot be written before anything is planned."""
    if write is None:
        return
    with _explained(write):
        is_folder = write.is_dir()
    if is_folder:
        raise ConfigError(f"--write {write} is a folder; name a file in it, such as {write / 'best.yaml'}")
    if not write.parent.is_dir():
        raise ConfigError(f"--write {write}: there is no folder {write.parent}; make it, or name a file elsewhere")


def _write(file: Path, config: "RunConfig", target: "Target") -> None:
    """Write a configuration with what the target settles, and with the name by which the hub knows its model."""
    from ftkit.engine.resolve import resolve

    text = dump_config(_by_hub_name(resolve(config, target.devices).config))
    with _explained(file):
        file.write_text(text, encoding="utf-8")


@contextmanager
def _explained(file: Path) -> "Iterator[None]":
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}; name another file with --write") from None


def _train_command(config: "RunConfig", target: "Target", written: Path | None) -> str:
    """Return the command that runs what was planned: by the launcher that the plan has taken for several devices."""
    from ftkit.engine.resolve import EngineKind, resolve

    start = "ftkit train"
    if target.num_devices > 1:
        is_plain = resolve(config, target.devices).engine is EngineKind.PLAIN
        start = (
            f"torchrun --nproc-per-node {target.num_devices} -m ftkit train"
            if is_plain
            else f"deepspeed --num_accelerators {target.num_devices} --module ftkit train"
        )
    settings = [f"--set {shlex.quote(setting)}" for setting in as_settings(_by_hub_name(config))]
    return " ".join((start, *([f"--config {shlex.quote(str(written))}"] if written else settings)))


def _by_hub_name(config: "RunConfig") -> "RunConfig":
    """Return a configuration that training can load: it does not know the names of the planner's table."""
    from ftkit.plan.architectures import hub_name

    return config.model_copy(update={"model": config.model.model_copy(update={"name": hub_name(config.model.name)})})


def search_lines(found: "Sequence[Candidate]") -> list[str]:
    """Return candidates as lines of text, each with what it costs and what it leaves free beside the fastest."""
    from ftkit.plan.changes import as_flags

    fastest = found[0].seconds
    lines = [f"{'':4}{'peak':>10}  {'a step':>9}  {'slower':>7}  changes"]
    for number, candidate in enumerate(found, start=1):
        seconds = f"{candidate.seconds:.3g} s" if fastest else "?"
        slower = f"{candidate.seconds / fastest - 1:.1%}" if fastest else "?"
        lines.append(
            f"{number:2}. {format_bytes(candidate.needed_bytes):>10}  {seconds:>9}  {slower:>7}  "
            f"{as_flags(candidate.changes) or 'as it is'}"
        )
    return lines


def _cost(candidate: "Candidate") -> str:
    needed = format_bytes(candidate.needed_bytes)
    return f"{needed}, {candidate.seconds:.3g} s a step" if candidate.seconds else needed


if __name__ == "__main__":
    plan()
