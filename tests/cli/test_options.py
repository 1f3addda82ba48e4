"""An empty name, as a variable of the shell that is not set gives it, is refused wherever a name or a path is taken."""

import click
import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.config.section import EMPTY

TEXTS = {"--system", "texts", "--title", "--set"}
"""What may be empty, or has a sentence of its own: a message, the texts to answer, a heading, KEY=VALUE."""


def commands(group, words=()):
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def names():
    """Yield each parameter of each command that takes a text or a path."""
    for words, command in commands(main):
        for parameter in command.params:
            flag = parameter.opts[-1]
            is_text = isinstance(parameter.type, click.Path) or parameter.type.name == "text"
            if is_text and flag not in TEXTS and not getattr(parameter, "is_flag", False):
                yield pytest.param(words, command, parameter, id=" ".join((*words, flag)))


def required(command, but):
    """Return what else has to be given."""
    for parameter in command.params:
        if parameter.required and parameter is not but:
            value = parameter.type.choices[0] if isinstance(parameter.type, click.Choice) else "1"
            yield from [value] if isinstance(parameter, click.Argument) else [parameter.opts[-1], value]


@pytest.mark.parametrize(("words", "command", "parameter"), list(names()))
def test_an_empty_name_is_refused_by_its_flag(words, command, parameter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = parameter.opts[-1]
    own = [f"{called}="]
    if isinstance(parameter, click.Argument):
        own, called = [""], parameter.make_metavar(click.Context(command))
    done = CliRunner().invoke(main, [*words, *own, *required(command, parameter)])
    assert done.exit_code == 2, done.output
    assert done.output.splitlines()[-1] == f"Error: Invalid value for '{called}': {EMPTY}"
