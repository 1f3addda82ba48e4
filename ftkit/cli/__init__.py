"""The `ftkit` command; each subcommand is imported when it is called, so that `ftkit --help` is quick."""

import atexit
import gc
import importlib

import click

from ftkit import __version__

_COMMANDS = {
    "data": ("ftkit.cli.data", "data", "Show what a dataset holds, and what is wrong with it."),
    "train": ("ftkit.cli.train", "train", "Fine-tune a model and score it."),
    "plan": ("ftkit.cli.plan.command", "plan", "Predict memory, speed and disk, on any GPU, before anything runs."),
    "profile": ("ftkit.cli.profile", "profile", "Measure what configurations really take, in a sweep."),
    "compare": ("ftkit.cli.compare", "compare", "Train several methods on the same data, and say which is better."),
    "tune": ("ftkit.cli.tune.command", "tune", "Search for the best settings, under a budget of memory and time."),
    "study": ("ftkit.cli.study", "study", "Say how well labels can be told, and which are probably wrong."),
    "predict": ("ftkit.cli.predict", "predict", "Answer texts with a trained model."),
    "evaluate": ("ftkit.cli.evaluate", "evaluate", "Score a trained model on other data."),
    "chat": ("ftkit.cli.chat", "chat", "Talk to a trained language model."),
    "export": ("ftkit.cli.export", "export", "Export a trained model: merged, as an adapter, as GGUF or as ONNX."),
    "report": ("ftkit.cli.report", "report", "Show runs side by side, as a table, a file or a page."),
    "cache": ("ftkit.cli.cache", "cache", "Show, check or remove what frozen layers have computed."),
    "doctor": ("ftkit.cli.doctor", "doctor", "Look at this machine: what works, and what to install."),
    "config": ("ftkit.cli.config", "config", "Show presets, the resolved configuration or its JSON schema."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the names of the commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ftkit")
# `deepspeed --module ftkit train` puts it before the subcommand (deepspeed/launcher/launch.py, main).
@click.option("--local_rank", "--local-rank", type=int, hidden=True, expose_value=False)
def main() -> None:
    """Fine-tune transformer models where memory is scarce."""
    # Or the interpreter looks at every object of every library once more before it ends: a second of each command.
    atexit.register(gc.freeze)
