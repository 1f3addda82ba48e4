"""`ftkit export`: a trained model in another form."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftkit.cli.opening import begin_with
from ftkit.cli.options import Name, Place, note, quieten, user_errors
from ftkit.machine.hub import check_login, upload
from ftkit.units import format_bytes

if TYPE_CHECKING:
    from ftkit.inference.export import Exported


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=Name())
@click.option(
    "--to",
    "form",
    type=click.Choice(["merged", "adapter", "gguf", "onnx"]),
    required=True,
    help="merged: a whole model for transformers alone; adapter: for PEFT, beside its base model; gguf: for llama.cpp; "
    "onnx: for ONNX's runtimes.",
)
@click.option(
    "--output",
    type=Place(file_okay=False),
    metavar="FOLDER",
    help="Where to; in the run's folder, named for the form, when not named.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "q8_0"]),
    help="Of the weights; when not named that of the base model, in GGUF fp16, in ONNX fp32. q8_0: GGUF alone.",
)
@click.option("--compare/--no-compare", "compares", default=True, help="Compare the logits with the run's.  [compare]")
@click.option(
    "--push",
    type=Name(),
    metavar="NAME",
    help="Upload the result to the hub under this name; private until you open it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def export(run: str, output: Path | None, push: str | None, *, as_json: bool, compares: bool, **how: Any) -> None:
    """Export a trained model, and say how far its logits are from those that were scored.

    RUN is the folder of a run, an exported folder, or a model of the hub. Merging takes the memory of one matrix, and
    merges onto the weights as they were before they were packed in 4 bits. Nothing is uploaded without --push. Exit
    codes: 2 a wrong flag or a folder that is there already, 4 a model that cannot be loaded, 7 a hub that refuses.
    """
    with user_errors():
        begin_with(run)
        quieten()
        if push is not None:
            check_login(push)
        from ftkit.inference.export import export as exported

        folder = output or Path(run) / how["form"]
        result = exported(run, how["form"], folder, how["precision"], note, compares=compares, hub_name=push)
        if as_json:
            sys.stdout.write(json.dumps(asdict(result), default=str) + "\n")
        else:
            click.echo("\n".join(_lines(result)))
        if push is not None:
            _push(result, push)


def _push(result: "Exported", name: str) -> None:
    from ftkit.records.origin import private_files

    folder = result.place if result.place.is_dir() else result.place.parent
    stay = private_files(folder)
    for file in stay:
        note(f"{file} stays here: it names files of this machine")
    click.echo(f"uploaded to {upload(folder, name, stay)}", err=True)


def _lines(result: "Exported") -> list[str]:
    lines = [f"{result.form}: {format_bytes(result.num_bytes)} in {result.place}"]
    if result.difference is not None:
        lines.append(result.difference.words())
    return [
        *lines,
        *([] if result.form == "onnx" else [f'try it: ftkit predict {shlex.quote(str(result.place))} "A text."']),
    ]


if __name__ == "__main__":
    export()
