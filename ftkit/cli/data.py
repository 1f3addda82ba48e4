"""`ftkit data`: a dataset as a model will see it, and what is wrong with it, before anything trains."""

import json
import unicodedata
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftkit.cli.options import Name, Place, config_options, quieten, read_config, user_errors
from ftkit.errors import ConfigError, DataError
from ftkit.machine.hub import work_offline_if_unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ftkit.config.tree import RunConfig
    from ftkit.data.arrays import PreparedData
    from ftkit.data.findings import Finding
    from ftkit.data.inspect import ShownSequence
    from ftkit.data.near.told import NearTexts
    from ftkit.data.reading.sources import Source
    from ftkit.report.pages.dataset import Alike

_BAR = 40  # characters of the longest bar
_CONTEXT, _TARGET = 300, 600  # characters of a text that are shown


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", required=False, type=Name(), metavar="[FILE|FOLDER|NAME]")
@config_options
@click.option("--rows", type=click.IntRange(min=0), default=3, show_default=True, help="Sequences that are shown.")
@click.option("--strict", is_flag=True, help="Exit with 3 where there is a warning, for continuous integration.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--html",
    "page",
    type=Place(dir_okay=False),
    metavar="FILE.html",
    help="Write the same as a page, too.",
)
def data(dataset: str | None, rows: int, *, strict: bool, as_json: bool, page: Path | None, **flags: Any) -> None:
    """Show what a dataset holds, what is wrong with it, and the first sequences with their targets marked.

    Takes all flags of `ftkit train`; those that say nothing of data are not listed here. Only the tokenizer of the
    model is loaded. Exits with 3 where the data cannot be used.
    """
    with user_errors():
        if page is not None and page.suffix not in (".html", ".htm"):
            raise ConfigError(
                f"--html {page}: end the name in .html; a page is written there, in the place of any file"
            )
        is_guessed = not (flags["task"] or flags["file"] or flags["preset"])
        is_guessed = is_guessed and not any(setting.partition("=")[0] == "task" for setting in flags["settings"])
        flags["data__dataset"] = flags["data__dataset"] if dataset is None else dataset
        config = read_config(flags)
        work_offline_if_unreachable((config.model.name, config.data.dataset))
        from ftkit.data.reading.sources import load_source

        source = load_source(config.data)
        if not as_json:
            click.echo("\n".join(_source_lines(source)))
        config = _with_task(config, source, as_json=as_json) if is_guessed else config
        shown = _look(config, source, rows)
        _print(shown, as_json=as_json)
        if page is not None:
            _write_page(page, shown, source)
        problems = {finding.severity.value for finding in shown.findings}
    if "error" in problems or (strict and "warning" in problems):
        click.get_current_context().exit(DataError.exit_code)


@dataclass(frozen=True)
class _Shown:
    """The parts of a dataset that are shown: of one that is refused the findings alone.

    Attributes:
        prepared: the splits.
        sequences: the first ones.
        findings: the worst first.
    """

    prepared: "PreparedData | None"
    sequences: "Sequence[ShownSequence]"
    findings: "Sequence[Finding]"


def _look(config: "RunConfig", source: "Source", rows: int) -> _Shown:
    """Prepare data as training does, and find what there is to tell of it."""
    quieten()
    from ftkit.data.findings import Finding, RefusedDataError, Severity, by_severity
    from ftkit.data.inspect import first_sequences
    from ftkit.data.prepare import prepare_data
    from ftkit.machine.kept_arrays import kept_tokens
    from ftkit.models.sources.source import load_tokenizer, resolve_source
    from ftkit.models.sources.start import kept_label_names

    model = resolve_source(config.model, config.task)
    tokenizer = load_tokenizer(model)
    own_labels = kept_label_names(config, model)
    store = kept_tokens(config.cache)
    try:
        prepared = prepare_data(
            config.data, config.task, tokenizer, config.data_seed, own_labels, source, store=store, tells_near=True
        )
    except RefusedDataError as error:
        refused = Finding(Severity.ERROR, str(error))
        if not error.way_on:
            return _Shown(None, (), [refused, *by_severity(error.findings)])
        # All that is wrong is told at once: the rest is read as if its owner had followed the advice.
        rest = _look(config.model_copy(update={"data": config.data.model_copy(update=error.way_on)}), source, rows)
        return replace(rest, findings=[refused, *rest.findings])
    except DataError as error:
        return _Shown(None, (), [Finding(Severity.ERROR, str(error))])
    sequences = list(first_sequences(prepared, tokenizer, rows))
    return _Shown(prepared, sequences, by_severity(prepared.report.all_findings()))


def _print(shown: _Shown, *, as_json: bool) -> None:
    from ftkit.data.inspect import figures

    prepared, findings = shown.prepared, _plain(shown.findings)
    if as_json:
        sequences = [asdict(sequence) for sequence in shown.sequences]
        known = {} if prepared is None else figures(prepared) | {"sequences": sequences}
        click.echo(json.dumps(known | {"findings": findings}, ensure_ascii=False))
        return
    lines = [] if prepared is None else [*_report_lines(prepared), *_sequence_lines(shown.sequences)]
    lines += [] if prepared is None else _near_lines(prepared.report.near)
    click.echo("\n".join([*lines, *_finding_lines(shown.findings)]))


def _write_page(path: Path, shown: _Shown, source: "Source") -> None:
    """Write what was found as a page."""
    from ftkit.cli.report import write_whole
    from ftkit.data.inspect import column_lines
    from ftkit.report.pages.dataset import Dataset, ShownText, Told, data_page

    report = None if shown.prepared is None else shown.prepared.report
    splits = [] if report is None else list(report.rows)
    counts = [] if report is None else [report.label_counts[split] for split in splits if split in report.label_counts]
    names = [] if report is None or not counts else list(report.label_names or ())
    page = Dataset(
        name=source.name,
        lines=[*column_lines(source), *([] if report is None else report.summary())],
        splits=splits,
        classes=list(zip(names, zip(*counts, strict=True), strict=True)),
        lengths={} if report is None else report.length_histogram,
        sequences=[ShownText(_heading(one), [(_cut(*part), part[1]) for part in one.parts]) for one in shown.sequences],
        findings=[Told(**finding) for finding in _plain(shown.findings)],
        near=[] if report is None else _alike(report.near),
    )
    write_whole(path, data_page(page))
    click.echo(f"the page: {path}", err=True)


def _alike(found: "Sequence[NearTexts]") -> "list[Alike]":
    """Return the examples of texts that are nearly the same, for a page."""
    from ftkit.report.pages.dataset import Alike

    return [
        Alike(
            f"{one.later} and {one.earlier}, {example.alike}",
            [(example.row, _printable(example.text)), (example.other, _printable(example.other_text))],
        )
        for one in found
        for example in one.examples
    ]


def _with_task(config: "RunConfig", source: "Source", *, as_json: bool) -> "RunConfig":
    """Take the task that the columns are for, where it is clear."""
    from ftkit.data.inspect import guess_task

    task = guess_task(config.data, source)
    if not as_json:
        told = f"{task}, by its columns" if task else f"{config.task}, since its columns do not tell"
        click.echo(f"task: {told}; --task says otherwise")
    return config.model_copy(update={"task": task or config.task})


def _source_lines(source: "Source") -> list[str]:
    from ftkit.data.inspect import column_lines

    return [click.style(source.name, bold=True), *column_lines(source)]


def _report_lines(prepared: "PreparedData") -> list[str]:
    lines = ["", *prepared.report.summary()]
    for split, bars in prepared.report.length_histogram.items():
        lines += ["", f"{split}, tokens of a text before it is cut", *_bars(bars)]
    return lines


def _bars(bars: "Sequence[tuple[int, int]]") -> list[str]:
    most = max((count for _, count in bars), default=1)
    return [
        f"  up to {bound:>7,}  {'█' * max(count > 0, round(_BAR * count / most)):{_BAR}}  {count:,}"
        for bound, count in bars
    ]


def _sequence_lines(sequences: "Iterable[ShownSequence]") -> list[str]:
    lines = []
    for shown in sequences:
        lines += ["", _heading(shown, marks=", marked ⟦ ⟧")]
        text = "".join(_marked(text, is_target=is_target) for text, is_target in shown.parts)
        lines += [f"  {line}" for line in text.split("\n")]
    return lines


def _near_lines(found: "Sequence[NearTexts]") -> list[str]:
    lines = []
    for one in found:
        lines += ["", click.style(f"nearly the same: {one.later} and {one.earlier}", bold=True)]
        for example in one.examples:
            for place, text in ((example.row, example.text), (example.other, example.other_text)):
                lines += [f"  {place}:", *(f"    {line}" for line in _printable(text).split("\n"))]
            lines.append(f"  {example.alike}")
    return lines


def _heading(shown: "ShownSequence", marks: str = "") -> str:
    label = "" if shown.label is None else f", label {shown.label!r}"
    targets = "" if shown.label is not None else f", {shown.num_targets:,} of them targets{marks}"
    window = "" if shown.window is None else ", window {} of {}".format(*shown.window)
    return f"{shown.split} {shown.number}{window}: {shown.num_tokens:,} tokens{targets}{label}"


def _marked(text: str, *, is_target: bool) -> str:
    shown = _cut(text, is_target)
    return click.style(f"⟦{shown}⟧", fg="green") if is_target else shown


def _cut(text: str, is_target: bool) -> str:  # a part of a sequence is such a pair
    return _shortened(_printable(text), _TARGET if is_target else _CONTEXT)


def _printable(text: str) -> str:
    """Return a text without control characters, which a terminal would obey."""
    return "".join(sign if sign == "\n" or unicodedata.category(sign)[0] != "C" else repr(sign)[1:-1] for sign in text)


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _finding_lines(found: "Sequence[Finding]") -> list[str]:
    colours = {"error": "red", "warning": "yellow", "note": None}
    lines = [click.style(finding.line(), fg=colours[finding.severity.value]) for finding in found]
    return ["", *(lines or ["nothing to complain of"])]


def _plain(found: "Sequence[Finding]") -> list[dict[str, str]]:
    return [{"severity": one.severity.value, "text": one.text, "cure": one.cure} for one in found]


def _hide_flags_of_training(command: click.Command) -> None:
    """Keep flags that say nothing of data out of the help; they are taken all the same, as `ftkit train` takes them."""
    shown = ("data__", "model__name", "training__seed")
    for option in command.params:
        is_of_training = "__" in (option.name or "") and not (option.name or "").startswith(shown)
        if isinstance(option, click.Option) and (is_of_training or option.name == "method"):
            option.hidden = True


_hide_flags_of_training(data)


if __name__ == "__main__":
    data()
