"""`ftkit train`, which `deepspeed launch/train.py` and `deepspeed --module ftkit train` run too."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ftkit.cli.grouped_help import GroupedHelp
from ftkit.cli.launch import NumDevices, launch
from ftkit.cli.opening import say_begun
from ftkit.cli.options import Name, Place, config_options, quieten, read_config, user_errors
from ftkit.config.engine import EngineConfig
from ftkit.config.files import UnsoundConfigError, load_config
from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError
from ftkit.machine.environment import prepare_environment
from ftkit.machine.hub import work_offline_if_unreachable
from ftkit.machine.process import ProcessContext, end_if_launched
from ftkit.models.sources.adapters import asked_names

_FREED = (
    "batch.micro_batch_size=null",
    "batch.micro_batch_tokens=null",
    "model.recompute=none",
    "model.offload_activations=false",
    "engine.stream_layers=none",
    "engine.stream_micro_batches=1",
)
"""What a run that is resumed with --fit had chosen, or was told, and the planner chooses anew."""
_FREED_OF_ZERO = ("engine.zero_stage=null", "engine.offload_optimizer=none", "engine.offload_parameters=none")
"""The same under DeepSpeed, where a stage of 0 says that the plain engine was chosen."""


@click.command(cls=GroupedHelp, context_settings={"help_option_names": ["-h", "--help"]})
@config_options
@click.option(
    "--resume",
    type=Place(),
    metavar="FOLDER|auto",
    help="Go on with the run in this folder; with a later end, such as --epochs 6, also with one that is finished. "
    "auto: go on with what --output holds, or start it.",
)
@click.option("--overwrite", is_flag=True, help="Empty an output folder that another run has filled.")
@click.option("--fit", is_flag=True, help="Choose the fastest exact configuration that fits (engine.fit=true).")
@click.option(
    "--memory-budget", type=Name(), metavar="SIZE", help="What the run may take of each device (engine.memory_budget)."
)
@click.option("--no-plan", is_flag=True, help="Train without predicting memory first (training.plan_first=false).")
@click.option("--memory-timeline", is_flag=True, help="Record the live bytes by kind through one step, the second.")
@click.option("--memory-snapshot", is_flag=True, help="CUDA: write torch's own snapshot of two steps for its viewer.")
@click.option("--json", "as_json", is_flag=True, help="Print nothing but the record of the run, as JSON, at the end.")
@click.option(
    "--num-devices", type=NumDevices(), help="Start one process for each of this many devices, as torchrun does."
)
@click.option("--restarts", type=int, default=0, help="Times to start all processes again when one is lost.")
@click.option(
    "--seeds", type=click.IntRange(min=2), help="Train this many times, with other orders, heads and dropout each time."
)
@click.option("--local_rank", "--local-rank", type=int, hidden=True, help="Given by the deepspeed launcher; not used.")
def train(  # noqa: PLR0913  # one parameter is one flag
    resume: Path | None,
    *,
    overwrite: bool,
    fit: bool,
    memory_budget: str | None,
    no_plan: bool,
    memory_timeline: bool,
    memory_snapshot: bool,
    as_json: bool,
    num_devices: int | None,
    restarts: int,
    seeds: int | None,
    local_rank: int | None,  # noqa: ARG001  # LOCAL_RANK says the same
    **flags: Any,
) -> None:
    """Fine-tune a model on texts, score it on the test split, and leave a result folder.

    With no flags: LoRA on the embedded demo, MiniLM on movie reviews. Under a launcher (deepspeed, torchrun) the same
    command runs on every process.
    """
    with user_errors():
        process = ProcessContext.from_environment()
    with user_errors(process.rank):
        if resume == Path("auto"):
            flags["settings"], resume = (*flags["settings"], "output.resume=auto"), None
        if resume is not None:
            _go_on(flags, resume, chooses=fit)
        named = {
            "output.overwrite=true": overwrite,
            "engine.fit=true": fit,
            f"engine.memory_budget={memory_budget}": memory_budget is not None,
            "training.plan_first=false": no_plan,
            "output.memory_timeline=true": memory_timeline,
            "output.memory_snapshot=true": memory_snapshot,
        }
        flags["settings"] = (*flags["settings"], *(setting for setting, is_wanted in named.items() if is_wanted))
        config = _read(flags, process, is_resumed=resume is not None)
        if seeds is not None:
            from ftkit.cli.series import train_series

            train_series([config], seeds, Path(config.output.folder or "runs/seeds"))
            return
        if (num_devices or restarts) and process.launcher == "none":
            launch(config, num_devices or 1, restarts)
        say_begun("training", config, is_quiet=as_json or not process.is_main)
        prepare_environment(config)
        work_offline_if_unreachable(asked_names(config.model.name))
        quieten()
        from ftkit.cli.report import write_run_page
        from ftkit.training.reporters import ConsoleReporter
        from ftkit.training.train import train_and_track

        reporter = ConsoleReporter(Console(quiet=as_json))
        record = train_and_track(config, process, reporter, resume=resume is not None)
        if reporter.folder is not None:
            reporter.note(f"the report: {write_run_page(reporter.folder)}")
        if as_json and process.is_main:
            sys.stdout.write(record.model_dump_json() + "\n")
    end_if_launched()


def _read(flags: dict[str, Any], process: ProcessContext, *, is_resumed: bool) -> RunConfig:
    """Build the configuration; where it is not valid, tell on the first rank what else is wrong with the run."""
    try:
        return read_config(flags)
    except UnsoundConfigError as error:
        if not process.is_main:
            raise
        quieten()
        from ftkit.training.checks.first_look import look_beside

        raise look_beside(error, is_resumed=is_resumed) from None


def _go_on(flags: dict[str, Any], folder: Path, *, chooses: bool) -> None:
    """Begin from the configuration of the run in a folder; the planner chooses anew what it had chosen, if asked to."""
    _check_resumed(folder)
    flags["file"] = flags["file"] or folder / "config.yaml"
    flags["output__folder"] = str(folder)
    freed = _freed(load_config(flags["file"]).engine) if chooses else ()
    flags["settings"] = (*_other_end(flags), *freed, *flags["settings"])


def _freed(engine: EngineConfig) -> tuple[str, ...]:
    """Return what the planner chooses anew of a run on this engine.

    What it never chooses stays: a template of the user's own, and offload to a disk. A run that was DeepSpeed's by its
    stage stays so without one.
    """
    if engine.ds_config is not None or "nvme" in (engine.offload_optimizer, engine.offload_parameters):
        return _FREED
    is_deepspeed = engine.name == "auto" and engine.asks_for_zero
    return (*_FREED, *_FREED_OF_ZERO, *(("engine.name=deepspeed",) if is_deepspeed else ()))


def _other_end(flags: dict[str, Any]) -> list[str]:
    """Return what lets a run go on to the one end that is named, epochs or steps, whatever the other was."""
    named = {setting.partition("=")[0].strip() for setting in flags["settings"]}
    named |= {name.replace("__", ".") for name, value in flags.items() if value is not None}
    ends = {"training.epochs", "training.max_steps"}
    return [f"{end}=null" for end in ends - named] if ends & named else []


def _check_resumed(folder: Path) -> None:
    """Refuse a folder that no run has begun in."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"--resume {folder}: no run has begun there (no config.yaml); give the folder of its results")


if __name__ == "__main__":
    train()
