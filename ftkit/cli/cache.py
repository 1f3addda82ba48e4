"""`ftkit cache`: list, check and remove hidden states, tokens, packed layers and answers of what fits."""

import json
import sys
from datetime import datetime
from pathlib import Path

import click

from ftkit.cli.options import Name, user_errors
from ftkit.errors import ConfigError, DeviceError
from ftkit.machine.kept_files import KeptFiles
from ftkit.machine.sealed import is_sound
from ftkit.models.trunk import entries
from ftkit.units import counted, format_bytes


@click.group()
def cache() -> None:
    """Show what frozen layers have computed and the next run finds; check it; remove it.

    The folder is trunk/ in FTKIT_CACHE, by default in ~/.cache/ftkit; beside it are tokens/, packed/ (layers in 4 bits
    that are streamed) and fits/ (answers of `ftkit plan --what-fits`), which have no entries by name.
    """


@cache.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each entry.")
def list_(*, as_json: bool) -> None:
    """List the entries, the least recently used first."""
    with user_errors():
        found = entries.list_entries()
        if as_json:
            for entry in found:
                sys.stdout.write(json.dumps(_plain(entry)) + "\n")
            return
        for entry in found:
            click.echo(_line(entry))
        click.echo(f"{format_bytes(sum(entry.num_bytes for entry in found))} in {entries.folder()}")
        for words, nameless in _nameless():
            click.echo(f"{format_bytes(nameless.num_bytes())} of {words} in {nameless.folder}")


@cache.command()
@click.argument("names", nargs=-1, type=Name())
def verify(names: tuple[str, ...]) -> None:
    """Compare every file with its checksum; exits with 7 where one is damaged. NAMES: all entries when not named."""
    with user_errors():
        damaged = [shard for path in _paths(names) for shard in entries.damaged_shards(path)]
        others = () if names else (file for _, nameless in _nameless() for file in nameless.files())
        damaged += [file for file in others if not is_sound(file)]
        if damaged:
            more = f", and {counted(len(damaged) - 1, 'more is', 'more are')} not either" if damaged[1:] else ""
            raise DeviceError(
                f"{damaged[0]} is not what was written{more}; the next run that needs it computes it again, or remove "
                "it with `ftkit cache remove`"
            )
        click.echo("every file is what was written")


@cache.command()
@click.argument("names", nargs=-1, type=Name())
@click.option("--all", "takes_all", is_flag=True, help="Remove every entry, and all that has no entry.")
def remove(names: tuple[str, ...], *, takes_all: bool) -> None:
    """Remove entries by the first letters of their NAMES; a run that has one open goes on."""
    with user_errors():
        if bool(names) == takes_all:
            raise ConfigError("name the entries to remove, as `ftkit cache list` shows them, or give --all")
        paths = _paths(names)
        kept = [path for path in paths if not entries.remove_entry(path)]
        for _, nameless in _nameless() if takes_all else ():
            for file in nameless.files():
                file.unlink(missing_ok=True)
        click.echo(f"removed {len(paths) - len(kept)} of {counted(len(paths), 'entry', 'entries')}")
        if kept:
            raise DeviceError(f"a run is writing {kept[0].name}; remove it when that has ended")


def _paths(names: tuple[str, ...]) -> list[Path]:
    """Return the folders of the entries that are named, of all where none is."""
    return [entries.find_entry(name) for name in names] or [found.path for found in entries.list_entries()]


def _nameless() -> list[tuple[str, KeptFiles]]:
    """Return the folders of files without entries, with what they hold in words."""
    return [
        ("tokens", KeptFiles("tokens", 0)),
        ("packed layers", KeptFiles("packed", 0)),
        ("answers of what fits", KeptFiles("fits", 0, ".json")),
    ]


def _line(entry: entries.Found) -> str:
    used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
    start = f"{entry.path.name[:12]}  {format_bytes(entry.num_bytes):>10}  {used}"
    if entry.about is None:
        return f"{start}  unfinished"
    about = entry.about
    rows = counted(about.num_sequences, "sequence") + (
        "" if about.num_rows == about.num_sequences else f", {about.num_rows:,} tokens"
    )
    return f"{start}  {about.model}, below {about.entry}: {about.split}, {rows}, {about.dtype}"


def _plain(entry: entries.Found) -> dict[str, object]:
    about = {} if entry.about is None else vars(entry.about)
    return {
        **about,
        "name": entry.path.name,
        "num_bytes": entry.num_bytes,
        "used": entry.used,
        "is_finished": entry.about is not None,
    }


if __name__ == "__main__":
    cache()
