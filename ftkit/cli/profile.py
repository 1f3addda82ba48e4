"""`ftkit profile`: what configurations really take, each in a process of its own."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import click

from ftkit.cli.options import config_options, user_errors
from ftkit.config import RunConfig
from ftkit.config_io import load_config, read_yaml
from ftkit.errors import ConfigError, FtkitError
from ftkit.records import Prediction, RunRecord
from ftkit.sweep import Trial, make_trials, parse_axis, read_axes, run_sweep
from ftkit.units import format_bytes, format_seconds, parse_bytes


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@config_options
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="KEY=A,B,C",
    help="An axis, such as method=lora,qlora; the sweep is the product of all axes. Keys joined by ':' move together: "
    "engine.zero_stage:world_size=null:1,2:2. world_size is the number of ranks.",
)
@click.option(
    "--sweep-file", type=click.Path(path_type=Path), help="Axes from YAML: each key with a list, or `configurations`."
)
@click.option(
    "--steps", default=5, show_default=True, type=click.IntRange(1), help="Timed steps of each configuration."
)
@click.option("--warmup", default=1, show_default=True, type=click.IntRange(0), help="Steps before the timed ones.")
@click.option("--time-limit", default=600.0, show_default=True, help="Seconds after which a configuration is ended.")
@click.option("--memory-limit", metavar="SIZE", help="Host memory that each process may allocate, such as 4GiB.")
@click.option("--no-plan", is_flag=True, help="Leave the prediction out.")
def profile(  # noqa: PLR0913  # one parameter is one flag
    sweeps: tuple[str, ...],
    sweep_file: Path | None,
    steps: int,
    warmup: int,
    time_limit: float,
    memory_limit: str | None,
    *,
    no_plan: bool,
    **flags: Any,
) -> None:
    """Run each configuration of a sweep for a few steps on its worst batch and measure memory and speed.

    The flags of `ftkit train` say what all have in common. A configuration that fails is a row with its reason. The
    same command goes on with a sweep that was stopped. The report goes into the folder of --output (runs/profile).
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # on the way out the child's processes are ended too
    with user_errors():
        folder = Path(flags.pop("output__folder") or "runs/profile")
        axes = [*(read_axes(read_yaml(sweep_file)) if sweep_file else []), *(parse_axis(text) for text in sweeps)]
        trials = make_trials(axes, _builder(flags))
        limit = [] if memory_limit is None else ["--memory-limit", str(parse_bytes(memory_limit))]
        rest = ["--warmup", str(warmup), "--steps", str(steps), *limit]
        if trials and all(trial.config is None for trial in trials):
            raise ConfigError(str(trials[0].refusal))
        _run_all(trials, folder, rest, time_limit, with_plan=not no_plan)
        _conclude(folder)


def _run_all(trials: list[Trial], folder: Path, rest: list[str], time_limit: float, *, with_plan: bool) -> None:
    """Run what has not been run, a line for each."""
    started, num_run = time.perf_counter(), 0

    def command(trial: Trial, place: Path) -> list[str]:
        return _command(trial, place, rest)

    def predict(trial: Trial) -> Prediction | None:
        return _predict(trial) if with_plan else None

    outcomes = run_sweep(trials, folder, command, predict, time_limit)
    for number, (trial, record, was_done) in enumerate(outcomes, start=1):
        num_run += not was_done
        left = (time.perf_counter() - started) / num_run * (len(trials) - number) if num_run else 0.0
        note = "done before" if was_done else f"{format_seconds(left)} left" if number < len(trials) else ""
        click.echo(f"[{number}/{len(trials)}] {trial.name}: {_words(record)}" + (f" ({note})" if note else ""))


def _conclude(folder: Path) -> None:
    """Print the table, write the page, and count what failed."""
    from rich.console import Console

    from ftkit.cli.report import write_page
    from ftkit.report.collect import collect_runs
    from ftkit.report.text import print_table

    runs = collect_runs([folder])
    print_table(runs, Console())
    failed = [run for run in runs if run.reason is not None]
    page = write_page([folder], folder / "report.html", folder.name)
    click.echo(f"{len(runs)} configurations, {len(failed)} failed; the report: {page}")


def _words(record: RunRecord) -> str:
    result = record.result
    if result is None or result.status == "failed":
        return f"{result.failure}: {result.reason}" if result else "unfinished"
    measured = result.measurement
    parts = [format_bytes(measured.peak_active_bytes or 0), f"{measured.tokens_per_second or 0:,.0f} tokens/s"]
    predicted = record.run.prediction
    if predicted and predicted.peak_active_bytes and measured.peak_active_bytes:
        error = predicted.peak_active_bytes / measured.peak_active_bytes - 1
        parts.append(f"predicted {error * 100:+.2f} %" if error else "predicted to the byte")
    return ", ".join(parts)


def _builder(flags: dict[str, Any]) -> Any:
    """Return what makes a configuration of an axis's settings: they are laid over the flags, these over --set."""
    file, preset, base = flags.pop("file"), flags.pop("preset"), list(flags.pop("settings"))
    for name, value in flags.items():
        if value is not None and value != ():
            base.append(f"{name.replace('__', '.')}={json.dumps(value)}")

    def build(settings: list[str]) -> RunConfig:
        config = load_config(file, preset, [*base, *settings])
        if config.batch.micro_batch_tokens == "auto":
            raise ConfigError(
                "batch.micro_batch_tokens=auto has no shape to measure; give a number (`ftkit plan` shows its choice)"
            )
        return config

    return build


def _command(trial: Trial, place: Path, rest: list[str]) -> list[str]:
    """Return the command line of one trial: python alone, or the DeepSpeed launcher for several ranks."""
    own = ["ftkit.cli.profile_one", str(place), *rest]
    if trial.world_size == 1:
        return [sys.executable, "-m", *own]
    threads = max(1, (os.cpu_count() or 1) // trial.world_size)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # ranks of one machine share its cores
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(trial.world_size)]
    return [*launcher, "--master_port", str(port), "--module", *own]


def _predict(trial: Trial) -> Prediction | None:
    """Return what the plan says, or None where it cannot say anything."""
    from ftkit.plan.place import find_place
    from ftkit.plan.predict import predict

    if trial.config is None:
        return None
    try:
        return predict(trial.config, find_place(num_devices=trial.world_size))
    except FtkitError as error:
        click.echo(f"no prediction for {trial.name}: {error}", err=True)
        return None
