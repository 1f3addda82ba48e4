"""`ftkit report`: the figures of runs, side by side."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from ftkit.cli.options import Name, Place, given_flags, user_errors
from ftkit.errors import ConfigError, nearest
from ftkit.machine.hardware import parse_budget
from ftkit.report.collect import Run, collect_runs
from ftkit.report.columns import COLUMNS

_FORMATS = {".html": "html", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, type=Name(), metavar="[RUN]...")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    type=Place(dir_okay=False),
    metavar="FILE",
    help="Write a file instead of printing: .html, .md, .tex, .csv or .json, by its ending; several may be given.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "latex", "csv", "json"]),
    default="table",
    show_default=True,
    help="What is printed where no --output is named.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--budget",
    type=Name(),
    metavar="SIZE",
    help="The memory that there is, such as 8GiB, for the page's plot; that of the plans when not named.",
)
@click.option("--sort", type=Name(), metavar="COLUMN", help="Order by a column of the CSV; -COLUMN: the largest first.")
@click.option("--title", default="ftkit report", show_default=True, help="The page's heading.")
def report(  # noqa: PLR0913  # one parameter is one flag
    runs: tuple[str, ...],
    outputs: tuple[Path, ...],
    form: str,
    budget: str | None,
    sort: str | None,
    title: str,
    *,
    as_json: bool,
) -> None:
    """Show runs side by side: memory, speed and scores, each prediction beside its measurement.

    RUN is a result folder, a folder of them (a sweep), or a record.jsonl; runs/ where none is named.
    """
    with user_errors():
        forms = [_form_of(path) for path in outputs]
        _check_flags(given_flags(), has_page="html" in forms)
        budget_bytes = None if budget is None else parse_budget(budget)
        found = _sorted(_collect(list(map(Path, runs or ("runs",)))), sort)
        for path, wanted in zip(outputs, forms, strict=True):
            write_whole(path, _render(found, wanted, title, budget_bytes))
            click.echo(f"{path}: {len(found)} runs", err=True)
        if not outputs:
            _print(found, "json" if as_json else form)


def write_run_page(folder: Path) -> Path:
    """Write the page of one run into its folder.

    Args:
        folder: a result folder with a record.

    Returns:
        The page.

    Raises:
        DataError: there is no record.
        ConfigError: the page cannot be written.
    """
    return write_page([folder], folder / "report.html", folder.name)


def write_page(paths: Sequence[Path], page: Path, title: str) -> Path:
    """Write the page of the runs at or below some folders.

    Args:
        paths: as `collect_runs` takes them.
        page: the file.
        title: its heading.

    Returns:
        The file.

    Raises:
        DataError: there is no record.
        ConfigError: the page cannot be written.
    """
    write_whole(page, _render(_collect(paths), "html", title, None))
    return page


def print_runs(paths: Sequence[Path]) -> None:
    """Print the table of the runs at or below some folders; raises as `write_page`."""
    _print(_collect(paths), "table")


def _collect(paths: Sequence[Path]) -> list[Run]:
    """Read records; what could not be read of them is said in a sentence each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = collect_runs(paths)
    for warning in caught:
        click.echo(f"warning: {warning.message}", err=True)
    return found


def _sorted(runs: list[Run], sort: str | None) -> list[Run]:
    if sort is None:
        return runs
    key = sort.removeprefix("-")
    column = next((column for column in COLUMNS if column.key == key), None)
    if column is None:
        raise ConfigError(f"no column {key!r} to sort by; {nearest(key, [column.key for column in COLUMNS])}")
    filled = [run for run in runs if column.value(run) is not None]
    empty = [run for run in runs if column.value(run) is None]
    return sorted(filled, key=lambda run: column.value(run), reverse=sort.startswith("-")) + empty  # type: ignore[arg-type, return-value]  # a column's values are of one type


def _check_flags(given: Sequence[str], *, has_page: bool) -> None:
    """Refuse flags that would change nothing of what is printed or written."""
    forms = [flag for flag in ("--format", "--json", "--output") if flag in given]
    if len(forms) > 1:
        raise ConfigError(
            f"{' and '.join(forms)} each say in which format; give one (several files: --output once for each)"
        )
    idle = [] if has_page else [flag for flag in ("--budget", "--title") if flag in given]
    if idle:
        raise ConfigError(
            f"{' and '.join(idle)} would change nothing: a page alone shows what they say; add --output report.html"
        )


def _form_of(path: Path) -> str:
    if path.suffix not in _FORMATS:
        raise ConfigError(f"--output {path}: what format is {path.suffix!r}? End the name in {', '.join(_FORMATS)}")
    return _FORMATS[path.suffix]


def _render(runs: list[Run], form: str, title: str, budget_bytes: int | None) -> str:
    from ftkit.report import text
    from ftkit.report.contest import contest
    from ftkit.report.pages.page import html_page

    match form:
        case "html":
            return html_page(runs, title, budget_bytes)
        case "markdown":
            return text.markdown(runs)
        case "latex":
            return text.comparison_latex(contest(runs))
        case "csv":
            return text.as_csv(runs)
        case _:
            return text.as_json(runs) + "\n"


def _print(runs: list[Run], form: str) -> None:
    if form == "table":
        from rich.console import Console

        from ftkit.report.text import print_table

        print_table(runs, Console())
    else:
        sys.stdout.write(_render(runs, form, "", None))


def write_whole(path: Path, content: str) -> None:
    """Write a whole file or none.

    Raises:
        ConfigError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(content, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name another with --output") from None


if __name__ == "__main__":
    report()
