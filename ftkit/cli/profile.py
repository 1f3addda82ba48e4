"""`ftkit profile`: what configurations really take, each in a process of its own."""

import json
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftkit.cli.grouped_help import GroupedHelp
from ftkit.cli.options import Name, Place, config_options, quieten, user_errors
from ftkit.cli.sweep_progress import SweepProgress
from ftkit.config.files import load_config, load_yaml
from ftkit.config.flags import short_names
from ftkit.errors import ConfigError, DoesNotFitError, FtkitError
from ftkit.machine.hub import work_offline_if_unreachable
from ftkit.machine.process import ProcessContext, usual_launcher
from ftkit.sweep.axes import Settings, Trial, make_trials, parse_axis, read_axes
from ftkit.sweep.sweep import Runner, open_folder, run_sweep
from ftkit.units import counted, parse_bytes

if TYPE_CHECKING:
    from ftkit.engine.resolve import ResolvedRun
    from ftkit.records.schema import Prediction, RunRecord
    from ftkit.report.collect import Run

_NOTHING_MEASURED = 1


@click.command(cls=GroupedHelp, context_settings={"help_option_names": ["-h", "--help"]})
@config_options
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    type=Name(),
    metavar="KEY=A,B,C",
    help="An axis, such as method=lora,qlora or rank=4,8; the sweep is the product of all axes. Any key of the "
    "configuration, or the name of its flag. Keys joined by ':' move together: zero-stage:world_size=null:1,2:2. "
    "world_size is the number of ranks.",
)
@click.option(
    "--sweep-file",
    type=Place(),
    help="Axes from YAML: each key with a list, or a list of configurations.",
)
@click.option(
    "--steps", default=5, show_default=True, type=click.IntRange(1), help="Timed steps of each configuration."
)
@click.option("--warmup", default=1, show_default=True, type=click.IntRange(0), help="Steps before the timed ones.")
@click.option(
    "--time-limit",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds after which a configuration is ended.",
)
@click.option(
    "--memory-limit", type=Name(), metavar="SIZE", help="Host memory that each process may allocate, such as 4GiB."
)
@click.option("--memory-snapshot", is_flag=True, help="CUDA: write torch's own snapshot of each, for its viewer.")
@click.option("--no-plan", is_flag=True, help="Leave the prediction out.")
@click.option("--retry", is_flag=True, help="Run again what failed before.")
@click.option("--overwrite", is_flag=True, help="Measure again what has been measured.")
@click.option("--json", "as_json", is_flag=True, help="Print nothing but the rows, as `ftkit report --json` does.")
def profile(  # noqa: PLR0913  # one parameter is one flag
    sweeps: tuple[str, ...],
    sweep_file: Path | None,
    steps: int,
    warmup: int,
    time_limit: float,
    memory_limit: str | None,
    *,
    memory_snapshot: bool,
    no_plan: bool,
    retry: bool,
    overwrite: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Run each configuration of a sweep for a few steps on its worst batch and measure memory and speed.

    The flags of `ftkit train` say what all have in common. A configuration that fails is a row with its reason. The
    same command goes on with a sweep that was stopped. The report goes into the folder of --output (runs/profile).
    Exits with 0 where a configuration was measured; where none was, with 8 if memory ran out in all, else with 1.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # on the way out the child's processes are ended too
    with user_errors():
        folder = Path(flags.pop("output__folder") or "runs/profile")
        trials = make_trials(_axes(sweeps, sweep_file), _builder(flags, memory_snapshot=memory_snapshot))
        limit = [] if memory_limit is None else ["--memory-limit", str(parse_bytes(memory_limit))]
        _check(trials, folder, memory_snapshot=memory_snapshot, overwrite=overwrite)
        if not as_json:
            click.echo(f"profiling into {folder}", err=True)

        def is_stale(record: "RunRecord") -> bool:
            assert record.result is not None
            failed = record.result.status == "failed"
            return overwrite or (retry if failed else record.result.measurement.num_timed_steps != steps)

        progress = SweepProgress(len(trials), is_quiet=as_json)
        runner = Runner(
            command=lambda trial, place: _command(
                trial, place, ["--warmup", str(warmup), "--steps", str(steps), *limit]
            ),
            predict=lambda trial: None if no_plan else _predict(trial, progress),
            time_limit=time_limit,
            begin=progress.begin,
            is_stale=is_stale,
        )
        with progress:
            for trial, record, was_done in run_sweep(trials, folder, runner):
                progress.end(trial, record, was_done=was_done)
        code = _conclude([folder / trial.name for trial in trials], folder, as_json=as_json)
    click.get_current_context().exit(code)


def _axes(sweeps: tuple[str, ...], sweep_file: Path | None) -> list[list[Settings]]:
    short = short_names()
    from_file = read_axes(load_yaml(sweep_file), short) if sweep_file else []
    return [*from_file, *(parse_axis(text, short) for text in sweeps)]


def _check(trials: list[Trial], folder: Path, *, memory_snapshot: bool, overwrite: bool) -> None:
    """Refuse what cannot be before anything runs, and let the hub's client know whether there is a hub."""
    if all(trial.run is None for trial in trials):
        raise ConfigError(str(trials[0].refusal))
    unknown = next((trial for trial in trials if trial.refusal and trial.refusal.startswith("unknown ")), None)
    if unknown is not None:  # a misspelt name, and not a combination that is refused
        raise ConfigError(f"{unknown.name}: {unknown.refusal}")
    work_offline_if_unreachable({trial.config.model.name for trial in trials if trial.config})
    quieten()
    if memory_snapshot:
        from ftkit.machine.memory import check_snapshot

        check_snapshot(ProcessContext().device)
    open_folder(trials, folder, overwrite=overwrite)


def _conclude(places: list[Path], folder: Path, *, as_json: bool) -> int:
    """Print the rows, write the page, count what failed, and return the exit code."""
    from rich.console import Console

    from ftkit.cli.report import write_page
    from ftkit.report import text
    from ftkit.report.collect import collect_runs

    runs = collect_runs(places)
    page = write_page(places, folder / "report.html", folder.name)
    if as_json:
        sys.stdout.write(text.as_json(runs) + "\n")
        return exit_code(runs)
    text.print_table(runs, Console())
    failed = [run for run in runs if run.reason is not None]
    click.echo(f"{counted(len(runs), 'configuration')}, {len(failed)} failed; the report: {page}")
    return exit_code(runs)


def exit_code(runs: Sequence["Run"]) -> int:
    """Return what a sweep exits with: 0 where anything was measured, 8 where memory ran out in all, 1 otherwise.

    Args:
        runs: of the sweep, each of which has ended.
    """
    failures = [None if run.record.result is None else run.record.result.failure for run in runs]
    if any(failure is None for failure in failures):
        return 0
    return DoesNotFitError.exit_code if set(failures) == {"out of memory"} else _NOTHING_MEASURED


def _builder(flags: dict[str, Any], *, memory_snapshot: bool) -> Any:
    """Return what makes a run of an axis's settings: they are laid over the flags, these over --set."""
    file, preset, base = flags.pop("file"), flags.pop("preset"), list(flags.pop("settings"))
    for name, value in flags.items():
        if value is not None and value != ():
            base.append(f"{name.replace('__', '.')}={json.dumps(value)}")
    if memory_snapshot:
        base.append("output.memory_snapshot=true")

    def build(settings: list[str], world_size: int) -> "ResolvedRun":
        from ftkit.engine.resolve import Devices, resolve

        config = load_config(file, preset, [*base, *settings])
        if config.batch.micro_batch_tokens == "auto":
            raise ConfigError(
                "batch.micro_batch_tokens=auto has no shape to measure; give a number (`ftkit plan` shows its choice)"
            )
        process = ProcessContext(world_size=world_size, launcher=usual_launcher(world_size))
        return resolve(config, Devices.of(process))

    return build


def _command(trial: Trial, place: Path, rest: list[str]) -> list[str]:
    """Return the command line of one trial: python alone, or the DeepSpeed launcher for several ranks."""
    own = ["ftkit.cli.profile_one", str(place), *rest]
    if trial.world_size == 1:
        return [sys.executable, "-m", *own]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(trial.world_size)]
    return [*launcher, "--master_port", str(port), "--module", *own]


def _predict(trial: Trial, progress: SweepProgress) -> "Prediction | None":
    """Return what the plan says, or None where it cannot say anything."""
    from ftkit.plan.inputs.target import PROFILED_BYTES, find_target
    from ftkit.plan.looked import looked
    from ftkit.plan.predict import predict

    if trial.run is None:
        return None
    try:
        target = replace(find_target(num_devices=trial.world_size), held_bytes=PROFILED_BYTES)
        return predict(trial.run.config.without_cache(), looked(target, trial.run))
    except FtkitError as error:
        progress.note(f"no prediction for {trial.name}: {error}")
        return None


if __name__ == "__main__":
    profile()
