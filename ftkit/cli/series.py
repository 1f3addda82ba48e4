"""Train one configuration after another, each in a process of its own, and leave one page and one table."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ftkit.cli.opening import check_named
from ftkit.cli.options import quieten
from ftkit.cli.report import print_runs, write_page
from ftkit.config.files import dump_config
from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError, InterruptedRunError

_STOPPED = (130, InterruptedRunError.exit_code)
"""What a run ends with that was asked to stop: nobody wants the next one."""


def train_series(configs: Sequence[RunConfig], num_seeds: int, folder: Path, *, has_baselines: bool = False) -> None:
    """Train every configuration under several seeds, all on the same splits, and compare them.

    A run that is there already is not trained again, so the same command goes on with a series that was stopped.

    Args:
        configs: one of each method.
        num_seeds: from `training.seed` on.
        folder: whose subfolders get the runs; the page is written beside them.
        has_baselines: whether the baselines of classes and labels are scored beside them.

    Raises:
        FtkitError: the model or the data cannot be used, or the folder cannot be written.
    """
    check_named(configs[0])
    failures = []
    members = series_members(configs, num_seeds, folder)
    for name, config in members.items():
        click.echo(click.style(f"{name}", bold=True))
        code = _train(name, config, folder)
        if code in _STOPPED:
            sys.exit(code)
        failures += [(name, code)] if code else []
    if has_baselines and len(failures) < len(members):
        _score_baselines(next(iter(members.values())), folder)
    for name, code in failures:
        click.echo(f"error: {name} ended with {code}; its last lines say why", err=True)
    click.echo(f"the comparison: {write_page([folder], folder / 'report.html', folder.name)}")
    print_runs([folder])
    if failures:
        sys.exit(failures[0][1])


def _score_baselines(config: RunConfig, folder: Path) -> None:
    """Score the baselines, where the answers are classes or labels."""
    quieten()
    from ftkit.training.study.baselines import NoBaselineError, write_baselines

    try:
        write_baselines(config, folder, click.echo)
    except NoBaselineError as error:
        click.echo(f"no baselines: {error}")


def series_members(configs: Sequence[RunConfig], num_seeds: int, folder: Path) -> dict[str, RunConfig]:
    """Return the runs of a series by their names."""
    members = {}
    for config in configs:
        for seed in range(config.training.seed, config.training.seed + num_seeds):
            name = config.method.name + (f"-seed{seed}" if num_seeds > 1 else "")
            changes = {"folder": str(folder / name), "resume": "auto", "overwrite": False}
            members[name] = config.model_copy(
                update={
                    "data": config.data.model_copy(update={"split_seed": config.data_seed}),
                    "training": config.training.model_copy(update={"seed": seed}),
                    "output": config.output.model_copy(update=changes),
                }
            )
    return members


def _train(name: str, config: RunConfig, folder: Path) -> int:
    """Run one training; return what it ended with."""
    file = folder / f"{name}.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(dump_config(config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}; name another folder with --output") from None
    return subprocess.run([sys.executable, "-m", "ftkit", "train", "--config", str(file)], check=False).returncode
