"""`ftkit study`: what a dataset is worth, before anything is fine-tuned on it."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ftkit.cli.opening import check_named, say_begun
from ftkit.cli.options import config_options, quieten, read_config, user_errors
from ftkit.errors import ConfigError
from ftkit.machine.environment import prepare_environment
from ftkit.report.pages.study import curve_csv, study_lines, study_page, suspects_csv

_FOLDER = "runs/study"
_FILES = ("study.json", "study.html", "wrong_labels.csv", "learning_curve.csv")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def study() -> None:
    """Find out what a dataset is worth, before anything is fine-tuned on it."""


@study.command(context_settings={"help_option_names": ["-h", "--help"]})
@config_options
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True, help="Of the cross-validation.")
@click.option("--json", "as_json", is_flag=True, help="Print nothing but what was found, as JSON.")
def features(folds: int, *, as_json: bool, **flags: Any) -> None:
    """Answer all texts by cross-validation on what a frozen model makes of them.

    Says how well the labels can be told, beside TF-IDF and the largest class; whether more labels would help; and which
    labels are probably wrong. Takes the flags of `ftkit train` for model and data. All splits are taken together. The
    model runs once, into the cache. --output names the folder, runs/study when not named: study.html, study.json,
    wrong_labels.csv and learning_curve.csv.
    """
    with user_errors():
        if flags.get("method") not in (None, "feature-extraction"):
            raise ConfigError(f"--method {flags['method']}: features are those of feature-extraction; leave it out")
        config = read_config(flags | {"method": "feature-extraction", "method__head": "logistic"})
        folder = Path(config.output.folder or _FOLDER)
        config = config.model_copy(update={"output": config.output.model_copy(update={"folder": str(folder)})})
        say_begun("studying", config, is_quiet=as_json)
        check_named(config)
        prepare_environment(config)
        quieten()
        from ftkit.training.reporters import ConsoleReporter, Reporters
        from ftkit.training.study.features import study_features

        reporter = Reporters() if as_json else Reporters(ConsoleReporter(Console(stderr=True)))
        found = study_features(config, folds, reporter)
        texts = (found.model_dump_json(indent=2), study_page(found), suspects_csv(found), curve_csv(found))
        for name, text in zip(_FILES, texts, strict=True):
            (folder / name).write_text(text, encoding="utf-8")
        if as_json:
            click.echo(json.dumps(found.model_dump(mode="json")))
            return
        click.echo("\n".join([*study_lines(found), *(f"{folder / name}" for name in _FILES)]))


if __name__ == "__main__":
    study()
