"""`ftkit predict`: what a trained model answers."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftkit.cli.opening import begin_with
from ftkit.cli.options import Name, Place, named_columns, note, quieten, user_errors
from ftkit.config.tree import DataConfig
from ftkit.errors import ConfigError
from ftkit.units import counted

if TYPE_CHECKING:
    from ftkit.data.asked import Asked
    from ftkit.inference.generate import Sampling
    from ftkit.inference.opened import Opened

_FORMATS = ("csv", "jsonl", "parquet")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=Name())
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--dataset",
    type=Name(),
    metavar="FILE|FOLDER|NAME",
    help="Answer the texts of data as train reads it; labels are not needed.",
)
@click.option(
    "--text-column", type=Name(), metavar="NAME", help="Of the texts in --dataset; found where its name is usual."
)
@click.option("--output", type=Place(dir_okay=False), metavar="FILE", help="Write .csv, .jsonl or .parquet.")
@click.option(
    "--format", "form", type=click.Choice(_FORMATS), help="What is written; by the ending of --output, else csv."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of an answer.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: no draws.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A key, such as data.encoding=cp1252.")
def predict(  # noqa: PLR0913  # one parameter is one flag
    run: str,
    texts: tuple[str, ...],
    dataset: str | None,
    text_column: str | None,
    output: Path | None,
    form: str | None,
    max_new_tokens: int,
    temperature: float,
    settings: tuple[str, ...],
) -> None:
    """Answer texts: those that are given, the rows of --dataset, or the lines of standard input.

    RUN is the folder of a run (its best model answers), an exported folder, or a model of the hub. A classifier gives
    the label and the probability of each class, a language model what it writes. Exit codes: 2 a wrong flag, 3 texts
    that cannot be read, 4 a model that cannot be loaded.
    """
    with user_errors():
        form = _form(output, form)
        if texts and dataset:
            raise ConfigError("texts are given, and --dataset too; give one of them")
        _check_no_files(texts)
        begin_with(run)
        quieten()
        from ftkit.inference.generate import Sampling
        from ftkit.inference.opened import open_config, open_model

        config = open_config(run, [*settings, *named_columns(text=text_column)])
        asked = _asked(texts, dataset, config.data)
        if asked.num_empty:
            click.echo(f"note: {counted(asked.num_empty, 'row has', 'rows have')} no text, and no answer", err=True)
        opened = open_model(run, config, note)
        _answer(opened, asked, output, form, Sampling(max_new_tokens, temperature))


def _form(output: Path | None, form: str | None) -> str:
    """Return the format of the answers: as asked, as the file's name ends, else CSV."""
    ending = output.suffix.removeprefix(".") if output else None
    if form is None and ending is not None and ending not in _FORMATS:
        raise ConfigError(f"--output {output}: end the name in {', '.join(f'.{one}' for one in _FORMATS)}")
    return form or ending or "csv"


def _asked(texts: Sequence[str], dataset: str | None, section: DataConfig) -> "Asked":
    from ftkit.data.asked import read_texts, typed

    if dataset:
        return read_texts(section, dataset)
    if texts:
        return typed(texts, "the command line")
    if sys.stdin.isatty():
        raise ConfigError("no text is given; write some behind RUN, name a file with --dataset, or pipe lines in")
    return typed(_piped_lines(), "standard input")


def _check_no_files(texts: Sequence[str]) -> None:
    """Check that no text is the name of a file with an ending, whose rows are more likely meant."""
    for text in texts:
        if _is_file(Path(text)):
            raise ConfigError(
                f"{text} is a file; to answer its rows: --dataset {shlex.quote(text)}; to answer its name as a text, "
                "pipe it in"
            )


def _is_file(path: Path) -> bool:
    try:
        return bool(path.suffix) and path.is_file()
    except OSError:  # longer than a name can be
        return False


def _piped_lines() -> list[str]:
    """Return the lines of standard input. They end at line feeds alone, since a text may hold U+2028 and the like."""
    text = sys.stdin.buffer.read().decode("utf-8-sig", errors="surrogateescape")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _answer(opened: "Opened", asked: "Asked", output: Path | None, form: str, sampling: "Sampling") -> None:
    """Write the answers as they come, and show on a terminal how far they are."""
    from ftkit.inference.output import opened_output, rows_of
    from ftkit.inference.predict import predict as answers
    from ftkit.inference.predict import written

    is_quiet = output is None or not sys.stderr.isatty()
    with (
        opened_output(output, form, sys.stdout) as writer,
        click.progressbar(length=len(asked.examples), label="texts", file=sys.stderr, hidden=is_quiet) as bar,
    ):
        if opened.labels is None:
            for row in written(opened, asked, sampling, note):
                writer.write([row])
                bar.update(1)
        else:
            for part in answers(opened, asked, note):
                writer.write(rows_of(part, opened.labels.names))
                bar.update(len(part.texts))
    if output is not None:
        note(f"{counted(len(asked.examples), 'answer')}: {output}")


if __name__ == "__main__":
    predict()
