"""`ftkit compare`: several methods on the same data, and which of them is better."""

from pathlib import Path
from typing import Any

import click

from ftkit.cli.grouped_help import GroupedHelp
from ftkit.cli.options import Name, config_options, named_methods, read_config, user_errors
from ftkit.cli.series import train_series
from ftkit.config.methods import methods
from ftkit.errors import ConfigError

_USUAL = "feature-extraction,lora,qlora"


@click.command(cls=GroupedHelp, context_settings={"help_option_names": ["-h", "--help"]})
@config_options
@click.option(
    "--methods", "names", type=Name(), default=_USUAL, show_default=True, metavar="A,B,...", help="What is compared."
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings of each method.")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Score two baselines beside them: the most frequent answer, and logistic regression on words.",
)
def compare(names: str, seeds: int, *, baselines: bool, **flags: Any) -> None:
    """Train each of several methods on the same data and splits, with the same steps, and say which is better.

    Takes all flags of `ftkit train`; those of a method apply to the methods that have them. --output names the folder
    of all runs, runs/compare when not named, where the page report.html is written. The same command again goes on
    with what was stopped, and trains nothing twice. Exits with the code of the first run that failed.
    """
    with user_errors():
        wanted = named_methods(names)
        if len(wanted) < 2:
            raise ConfigError(f"--methods {names}: give two methods or more; known: {', '.join(methods())}")
        configs = [read_config(_flags_of(name, flags)) for name in wanted]
        folder = Path(configs[0].output.folder or "runs/compare")
        train_series(configs, seeds, folder, has_baselines=baselines)


def _flags_of(method: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags for one method, without those of methods that it has no field for."""
    fields = methods()[method].model_fields
    own = {key: value for key, value in flags.items() if key.partition("__")[2] in fields or not _is_of_method(key)}
    return own | {"method": method}


def _is_of_method(key: str) -> bool:
    return key.startswith("method__")


if __name__ == "__main__":
    compare()
