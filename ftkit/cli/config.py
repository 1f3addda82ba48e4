"""`ftkit config`: presets, the resolved configuration, its JSON schema."""

from typing import Any

import click

from ftkit.cli.grouped_help import GroupedHelp
from ftkit.cli.options import config_options, read_config, user_errors
from ftkit.config.files import dump_config, json_schema, preset_names, preset_path


@click.group()
def config() -> None:
    """Show presets, the resolved configuration or its JSON schema."""


@config.command(cls=GroupedHelp)
@config_options
def show(**flags: Any) -> None:
    """Print the configuration that the same flags of `ftkit train` would run, as YAML."""
    with user_errors():
        click.echo(dump_config(read_config(flags)), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON schema of the configuration, for an editor."""
    click.echo(json_schema())


@config.command()
def presets() -> None:
    """List the presets that ship with ftkit."""
    for name in preset_names():
        first = preset_path(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        click.echo(f"{name:28} {first}")


if __name__ == "__main__":
    config()
