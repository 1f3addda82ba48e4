"""A command whose help lists its flags below the sections of the configuration that they fill."""

import click

_HEADINGS = {
    "run": "What is trained, and where its settings come from",
    "model": "Model",
    "data": "Data",
    "method": "Method",
    "batch": "Batch",
    "training": "Training",
    "optimizer": "Optimizer and schedule",
    "engine": "Engine",
    "cache": "Cache of frozen layers",
    "output": "Output",
    "command": "This command",
}
_OF_THE_RUN = {"method", "task", "preset", "file", "settings"}
_SAME = {"schedule": "optimizer"}


class GroupedHelp(click.Command):
    """A command with the flags of a configuration; those of its own come first in the help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags, section by section."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("command", *_HEADINGS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups[_group(parameter.name or "")].append(record)
        for name, rows in groups.items():
            if rows:
                with formatter.section(_HEADINGS[name]):
                    formatter.write_dl(rows)


def _group(parameter: str) -> str:
    if parameter in _OF_THE_RUN:
        return "run"
    section = parameter.partition("__")[0] if "__" in parameter else "command"
    return _SAME.get(section, section)
