"""`ftkit tune`: the best settings of a training, under a budget of memory and of time."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ftkit.cli.grouped_help import GroupedHelp
from ftkit.cli.opening import check_named, say_begun
from ftkit.cli.options import Name, Place, config_options, named_methods, quieten, read_config, user_errors
from ftkit.cli.tune.trial import start_trial
from ftkit.config.files import dump_config, load_yaml
from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError
from ftkit.report.metrics import METRICS
from ftkit.report.pages.tuned import Tried, short, tuned_page
from ftkit.sweep.space import Space, read_space, usual_space
from ftkit.sweep.tuning import Budget, Tuning
from ftkit.units import format_seconds, parse_seconds

_BEST = "best.yaml"
_PAGE = "tuning.html"


@click.command(cls=GroupedHelp, context_settings={"help_option_names": ["-h", "--help"]})
@config_options
@click.option(
    "--methods", "names", type=Name(), metavar="A,B,...", help="Methods to choose from; that of the run when not named."
)
@click.option(
    "--space",
    type=Place(dir_okay=False),
    metavar="FILE",
    help="YAML: keys with lists of values, or with low and high; learning rate, warm-up, epochs, rank and targets when "
    "not named.",
)
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Configurations to try.")
@click.option(
    "--time-budget", type=Name(), metavar="TIME", help="What all trials of this call may take, such as 90m or 2h."
)
@click.option(
    "--memory-budget",
    type=Name(),
    metavar="SIZE",
    help="What one device may hold, such as 6GiB; its own when not named.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each trial that ended as a line of JSON.")
def tune(
    names: str | None,
    space: Path | None,
    trials: int,
    time_budget: str | None,
    memory_budget: str | None,
    *,
    as_json: bool,
    **flags: Any,
) -> None:
    """Search for the settings with the best validation, and write them to best.yaml.

    Takes all flags of `ftkit train`. The first trial is what these flags say; Optuna chooses the others. What would not
    fit, or not end in time, is never started, and what is worse than others at a validation is stopped there. --output
    names the folder, runs/tune when not named; the same command again goes on there. The test split is not looked at:
    train the winner with `ftkit train --config FOLDER/best.yaml`. Needs pip install 'ftkit[tune]'.
    """
    with user_errors():
        base = read_config(flags)
        folder = Path(base.output.folder or "runs/tune")
        wanted = named_methods(names) if names else [base.method.name]
        found = _space(space, base, wanted)
        budget = Budget(trials, None if time_budget is None else parse_seconds(time_budget))
        say_begun("searching settings of", base, is_quiet=as_json)
        check_named(base)
        quieten()
        shown = _as_json if as_json else _Lines(base.training.best_metric)
        tuning = Tuning(found, folder, _planner(memory_budget), start_trial, shown)
        tuning.run(budget)
        _finish(tuning, folder, as_json=as_json)


def _space(file: Path | None, base: RunConfig, names: list[str]) -> Space:
    if file is None:
        return usual_space(base, names)
    if not file.is_file():
        raise ConfigError(f"--space {file}: there is no such file")
    return read_space(base, load_yaml(file))


def _planner(memory_budget: str | None) -> Callable[[RunConfig, int | None], tuple[str | None, float | None]]:
    """Return a function that asks the planner why a configuration cannot run here, and how long it takes."""

    def verdict(config: RunConfig, num_samples: int | None) -> tuple[str | None, float | None]:
        from ftkit.plan.ask import plan

        engine = config.engine.model_copy(update={"memory_budget": memory_budget or config.engine.memory_budget})
        predicted = plan(config.model_copy(update={"engine": engine}), samples=num_samples)
        if not predicted.fits:
            return predicted.reason or "it does not fit", None
        return None, predicted.job.seconds if predicted.job else None

    return verdict


class _Lines:
    """Shows each trial as a line."""

    def __init__(self, metric: str) -> None:
        self._metric, self._best = METRICS[metric], None

    def __call__(self, trial: Tried) -> None:
        """Show a trial that begins, has ended, or had been killed."""
        settings = " ".join(f"{short(key).replace(' ', '_')}={value}" for key, value in trial.settings.items())
        if trial.state == "running":
            click.echo(f"{trial.number:>3}  {settings}")
            return
        figure = "" if trial.value is None else f"{self._metric.heading} {format(trial.value, self._metric.form)}"
        took = "" if trial.seconds is None else f", {format_seconds(trial.seconds)}"
        why = f" ({trial.reason})" if trial.reason else ""
        begun = f"{trial.number:>3}  {settings}\n" if trial.state in ("never started", "killed") else ""
        click.echo(f"{begun}     {click.style(trial.state, bold=True)}{': ' if figure else ''}{figure}{took}{why}")


def _as_json(trial: Tried) -> None:
    if trial.state != "running":
        sys.stdout.write(json.dumps(asdict(trial), default=str) + "\n")
        sys.stdout.flush()


def _finish(tuning: Tuning, folder: Path, *, as_json: bool) -> None:
    """Write the winner and the page, and say where they are."""
    best, trials = tuning.best(), tuning.tried()
    (folder / _PAGE).write_text(tuned_page(trials, tuning.importances(), tuning.metric, folder.name), encoding="utf-8")
    if best is None:
        raise ConfigError(
            f"none of {len(trials)} trials came to a validation; {folder / _PAGE} has the reasons, the last: "
            f"{trials[-1].reason if trials else 'no time'}"
        )
    config = tuning.space.config(best.settings)
    config = config.model_copy(update={"output": config.output.model_copy(update={"folder": None})})
    (folder / _BEST).write_text(dump_config(config), encoding="utf-8")
    if as_json:
        return
    metric = METRICS[tuning.metric]
    assert best.value is not None
    given = next((one.value for one in trials if one.settings == trials[0].settings and one.value is not None), None)
    before = "" if given is None else f", {format(given, metric.form)} as it was given"
    click.echo(f"best: trial {best.number}, {metric.heading} {format(best.value, metric.form)} on validation{before}")
    click.echo(f"its settings: {folder / _BEST}; next: ftkit train --config {shlex.quote(str(folder / _BEST))}")
    click.echo(f"the search: {folder / _PAGE}")


if __name__ == "__main__":
    tune()
