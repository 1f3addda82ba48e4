"""`ftkit evaluate`: the scores of a trained model on data."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftkit.cli.opening import begin_with
from ftkit.cli.options import Name, Place, named_columns, note, quieten, user_errors
from ftkit.config.tree import SPLITS
from ftkit.units import counted

if TYPE_CHECKING:
    from ftkit.inference.evaluate import Scored


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=Name())
@click.option(
    "--dataset", type=Name(), metavar="FILE|FOLDER|NAME", help="Other data with labels; that of the run when not named."
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    help="Which split; when not named the test split, or all of a lone file.",
)
@click.option(
    "--output",
    type=Place(dir_okay=False),
    metavar="FILE",
    help="Keep what each example was answered, as the answers of a run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--text-column", type=Name(), metavar="NAME", help="Of the texts in --dataset; found where its name is usual."
)
@click.option(
    "--label-column", type=Name(), metavar="NAME", help="Of the labels in --dataset; found where its name is usual."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A key, such as data.encoding=cp1252.")
def evaluate(  # noqa: PLR0913  # one parameter is one flag
    run: str,
    dataset: str | None,
    split: str | None,
    output: Path | None,
    text_column: str | None,
    label_column: str | None,
    *,
    as_json: bool,
    settings: tuple[str, ...],
) -> None:
    """Score a trained model on data, as training scores it: in the same precision and cut.

    RUN is the folder of a run, an exported folder, or a model of the hub. Exit codes: 2 a wrong flag, 3 data that
    cannot be used or has other labels, 4 a model that cannot be loaded.
    """
    with user_errors():
        begin_with(run)
        quieten()
        from ftkit.inference.evaluate import check_output, keep, score
        from ftkit.inference.opened import open_config, open_model

        columns = named_columns(text=text_column, label=label_column)
        config = open_config(run, [*settings, *columns])
        if output is not None:
            check_output(output, config.task, dataset, split)
        opened = open_model(run, config, note)
        scored = score(opened, dataset, split, (lambda _: None) if as_json else note)
        if output is not None:
            keep(scored, output)
        if as_json:
            sys.stdout.write(scored.line.model_dump_json(exclude={"kind", "step", "epoch"}) + "\n")
        else:
            click.echo("\n".join(_lines(scored)))


def _lines(scored: "Scored") -> list[str]:
    from ftkit.training.results.card import score_words

    line = scored.line
    rows = [f"{heading:<13} {value}" for heading, value in score_words(line).items()]
    for one in line.per_label or ():
        shown = f"precision {one.precision:.4f}  recall {one.recall:.4f}  F1 {one.f1:.4f}  rows {one.support:,}"
        rows.append(f"  {one.name}: {shown}")
    return [f"{line.split}, {counted(line.num_samples, 'sequence')}", *rows]


if __name__ == "__main__":
    evaluate()
