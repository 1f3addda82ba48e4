"""The longest text that fits on a card, for each model of the table and each method, as a table and as a page."""

import json
import sys
from typing import TYPE_CHECKING

import click

from ftkit.cli.plan.writing import check_file, explained
from ftkit.config.methods import methods
from ftkit.errors import ConfigError
from ftkit.models.sources.known import table_names
from ftkit.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ftkit.config.tree import RunConfig
    from ftkit.plan.inputs.target import Target
    from ftkit.records.fits import Fit


def check_page(page: "Path | None", *, is_asked: bool) -> None:
    """Refuse a page that cannot be written, or that no table is asked for.

    Raises:
        ConfigError: the page cannot be written, or no table is asked for.
    """
    if page is not None and not is_asked:
        raise ConfigError("--html writes the table of --what-fits; give both")
    check_file(page, "--html", "fits.html")


def show_what_fits(config: "RunConfig", targets: "Sequence[Target]", page: "Path | None", *, as_json: bool) -> None:
    """Print the longest text that fits, for each model of the table with each method on each device.

    Args:
        config: all else of the run.
        targets: the devices; one that comes twice is shown once.
        page: the file that takes the table as HTML; None: none does.
        as_json: print all of it as JSON, and nothing else.

    Raises:
        ConfigError: the page cannot be written.
    """
    from ftkit.plan.choices.kept_fits import KeptFits
    from ftkit.plan.choices.what_fits import what_fits
    from ftkit.report.pages.fits import by_device, fit_lines, fits_page

    models, columns, targets = table_names(), list(methods()), list(dict.fromkeys(targets))
    number = len(models) * len(columns) * len(targets)
    if not as_json:
        click.echo(f"asking {number} times for the longest text; what was not asked before takes minutes", err=True)
    fits = list(_told(what_fits(config, targets, models, columns, KeptFits()), number))
    titles = {one.words: f"{config.task} on {one.num_devices} x {one.name}, {format_bytes(one.memory_bytes)} each"
              for one in targets}  # fmt: skip
    tables = {titles[device]: rows for device, rows in by_device(fits).items()}
    if page is not None:
        with explained(page, "--html"):
            page.write_text(fits_page(tables, columns), encoding="utf-8")
    if as_json:
        click.echo(json.dumps([fit.model_dump(mode="json") for fit in fits]))
        return
    for title, rows in tables.items():
        click.echo("\n".join([title, *fit_lines(rows, columns)]))
    if page is not None:
        click.echo(f"written to {page}")


def _told(fits: "Iterable[Fit]", number: int) -> "Iterator[Fit]":
    """Yield what fits, and tell on a terminal how far it is: a card that was not asked about before takes minutes."""
    for place, fit in enumerate(fits, start=1):
        if sys.stderr.isatty():
            click.echo(f"\r{place:4} of {number}: {fit.model}, {fit.method}\x1b[K", err=True, nl=False)
        yield fit
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)
