"""One prediction as lines of text, and the changes that make the run fit where it does not."""

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ftkit.cli.plan.explain import explained, explained_json
from ftkit.cli.plan.writing import train_command, write_config
from ftkit.records.files import CHECKPOINT_BYTES
from ftkit.report.planned.explained import explanation_lines
from ftkit.report.planned.job import disk_words, job_rows, time_words
from ftkit.report.planned.streamed import stream_rows
from ftkit.report.planned.trunk import trunk_rows
from ftkit.units import counted, format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from ftkit.cli.plan.asked import Asked
    from ftkit.engine.resolve import ResolvedRun
    from ftkit.plan.choices.candidates import Candidate
    from ftkit.plan.inputs.target import Target
    from ftkit.plan.predicted import AnyPrediction


def show_prediction(
    asked: "Asked", write: "Path | None", *, exact: bool, as_json: bool, is_explained: bool = False
) -> bool:
    """Print what a configuration needs, the changes that make it fit where it does not, and write it where it does.

    Args:
        asked: the configuration at its target.
        write: the file that takes it as YAML; None: none does.
        exact: trace every layer.
        as_json: print the prediction as JSON, and nothing else.
        is_explained: say what it rests on too.

    Returns:
        Whether it fits.
    """
    from ftkit.engine.resolve import resolve
    from ftkit.plan.explain import expert_words, frozen_words
    from ftkit.plan.job import with_job
    from ftkit.plan.predict import predict_with_grounds

    config, options = asked
    target, sequences, tapes = options.target, options.sequences, options.tapes
    grounds = predict_with_grounds(config, target, options.architecture, sequences=sequences, exact=exact, tapes=tapes)
    grounds = replace(grounds, prediction=with_job(grounds.prediction, config, target, sequences))
    prediction = grounds.prediction
    if as_json:
        click.echo(explained_json(grounds, tapes) if is_explained else prediction.model_dump_json())
    else:
        click.echo("\n".join(prediction_lines(prediction, resolve(config, target.devices), target)))
        explanation = explained(grounds, tapes) if is_explained else None
        if experts := explanation.experts if explanation else expert_words(grounds):
            click.echo(f"{'experts':30} {experts}")
        for line in explanation.frozen if explanation else frozen_words(grounds):
            click.echo(f"{'frozen weights':30} {line}")
        if explanation:
            click.echo(
                "\n".join(["", "the whole job", *(f"{name:30} {value}" for name, value in job_rows(prediction.job))])
            )
            click.echo("\n".join(explanation_lines(explanation)))
        if not prediction.fits:
            show_cures(asked, prediction.step_seconds)
    if write is not None and prediction.fits:
        write_config(write, config, target)
        if not as_json:
            click.echo(train_command(config, target, write))
    if write is not None and not prediction.fits:
        click.echo(f"{write} is not written: the configuration does not fit", err=True)
    return prediction.fits


def prediction_lines(prediction: "AnyPrediction", run: "ResolvedRun", target: "Target") -> list[str]:
    """Return a prediction of a run at a target as lines of text."""
    verdict = prediction.verdict + (f": {prediction.reason}" if prediction.reason else "")
    where = f"{run.devices.world_size} x {prediction.device}, {format_bytes(prediction.budget_bytes)} each"
    rows = [
        ("verdict", f"{verdict} ({where})"),
        *([("  by", prediction.verdict_by)] if prediction.verdict_by else []),
        ("engine", _engine(run)),
        ("step", _shape(prediction)),
        ("peak, as the system shows it", _peak(prediction)),
        *_part_rows(prediction),
        ("where", _where(prediction)),
        (
            "host memory",
            f"{format_bytes(prediction.host_bytes)}, {format_bytes(prediction.pinned_bytes)} of it pinned",
        ),
        *_disk_rows(prediction),
        *trunk_rows(prediction.trunk),
        *stream_rows(prediction.streamed),
        ("a save", _saving(prediction.num_trainable_parameters, target)),
        (
            "weights",
            f"{format_count(prediction.num_parameters)}, {format_count(prediction.num_trainable_parameters)} of which "
            "train",
        ),
        *_time_rows(prediction),
        ("found", prediction.found),
    ]
    return [f"{name:30} {value}" for name, value in rows]


def _saving(num_trainable: int, target: "Target") -> str:
    """Say what a checkpoint writes, and how long this machine's disk, or one of a stated speed, takes for it."""
    from ftkit.plan.job import write_rate

    num_bytes, (rate, word) = num_trainable * CHECKPOINT_BYTES, write_rate(target)
    return f"{format_bytes(num_bytes)}, about {format_seconds(num_bytes / rate)} at {format_bytes(rate)}/s ({word})"


def _engine(run: "ResolvedRun") -> str:
    from ftkit.report.words import sharing

    devices = run.devices
    how = sharing(run.engine, devices.world_size, run.zero_stage, run.offload_optimizer, run.offload_parameters)
    is_asked_for = run.config.engine.name != "auto" or run.config.engine.asks_for_zero
    return how if run.zero_stage == 0 or is_asked_for else f"{how}, which the deepspeed launcher brings"


def _shape(prediction: "AnyPrediction") -> str:
    return (
        f"{prediction.num_micro_batches} x {counted(prediction.micro_batch_size, 'sequence')} "
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
    if prediction.returned_bytes:
        given_back = format_bytes(prediction.returned_bytes)
        rows.append(("  given back", f"{given_back} that the allocator would cache besides, if the card had no end"))
    return [*rows, ("  context", format_bytes(prediction.context_bytes))]


def _where(prediction: "AnyPrediction") -> str:
    place = prediction.peak_module or (
        "the loss" if prediction.peak_layer is None else f"layer {prediction.peak_layer}"
    )
    return f"{prediction.peak_phase}, {place}"


def _disk_rows(prediction: "AnyPrediction") -> list[tuple[str, str]]:
    rows = [("disk", disk_words(prediction.job) if prediction.job else format_bytes(prediction.disk_bytes))]
    return rows + ([("  offloaded", format_bytes(prediction.nvme_bytes))] if prediction.nvme_bytes else [])


def _time_rows(prediction: "AnyPrediction") -> list[tuple[str, str]]:
    from ftkit.plan.predicted import FormulaPrediction

    if isinstance(prediction, FormulaPrediction):
        return [("speed", "not predicted")]
    rows = [
        ("speed", f"{prediction.step_seconds:.3g} s a step, {format_count(prediction.tokens_per_second)} tokens/s"),
        ("speed is", str(prediction.speed_source)),
    ]
    return [*rows, ("whole job", time_words(prediction.job, prediction.num_steps))]


def show_cures(asked: "Asked", step_seconds: float | None) -> None:
    """Print the cheapest changes that make a configuration fit.

    Args:
        asked: what does not fit.
        step_seconds: of it, if it did; None: not known.
    """
    from ftkit.plan.choices.changes import as_flags, takes_fewer_bits
    from ftkit.plan.choices.search import cures
    from ftkit.plan.needs.bare import beyond_any_model

    found, beyond = cures(*asked), beyond_any_model(asked.options.target)
    left = beyond or "choose a smaller model or length"
    click.echo("what would fit:" if found else f"nothing that ftkit can change makes it fit; {left}")
    for candidate in found:
        rounding = "; rounds to fewer bits" if takes_fewer_bits(candidate.changes) else ""
        click.echo(f"  {as_flags(candidate.changes)}: {_cost(candidate, step_seconds)}{rounding}")


def _cost(candidate: "Candidate", step_seconds: float | None) -> str:
    prediction = candidate.prediction
    on_device = prediction.device != "cpu"
    host = f" and {format_bytes(prediction.host_bytes)} of host memory" if on_device else ""
    seconds = f", {candidate.seconds:.3g} s a step" if candidate.seconds else ""
    ratio = f", {candidate.seconds / step_seconds:.1f} times the step" if candidate.seconds and step_seconds else ""
    return f"{format_bytes(candidate.needed_bytes)}{host}{seconds}{ratio}"
