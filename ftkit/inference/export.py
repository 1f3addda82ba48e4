"""Give a trained model another form: merged into its base, its adapter ready for the hub; compared with what it was."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ftkit.config.files import load_config as load_settings
from ftkit.config.paths import from_root
from ftkit.config.precision import TORCH_NAMES, SettledPrecision
from ftkit.errors import ConfigError, ModelError
from ftkit.inference.difference import Difference, difference
from ftkit.inference.hub_card import Form, hub_card
from ftkit.inference.opened import find_run, find_settings, labels_of, open_config
from ftkit.machine.disk import written_aside
from ftkit.models.export.merge import write_merged
from ftkit.models.export.to_gguf import write_gguf
from ftkit.models.export.to_onnx import write_onnx
from ftkit.models.saving.dtypes import stored_dtype
from ftkit.models.saving.settings import save_tokenizer
from ftkit.models.sources.gguf import as_safetensors
from ftkit.models.sources.source import Source, load_config, load_tokenizer, resolve_source
from ftkit.models.sources.start import settle_start
from ftkit.records.files import CARD
from ftkit.records.origin import write_origin
from ftkit.training.results.metrics import labels_line

Note = Callable[[str], None]
Precision = SettledPrecision | Literal["q8_0"]
"""`q8_0`: 8 bits in blocks of 32, of GGUF alone."""

_SETTINGS = (".json", ".jinja", ".txt", ".model")
"""How the files of a configuration and of a tokenizer end."""


@dataclass(frozen=True)
class Exported:
    """What an export has left.

    Attributes:
        form: what was asked for.
        place: the folder, or the GGUF file in it.
        num_bytes: of all its files.
        difference: from the model that was scored; None where they were not compared.
    """

    form: Form
    place: Path
    num_bytes: int
    difference: Difference | None


def export(  # noqa: PLR0913  # one parameter is one flag
    name: str,
    form: Form,
    folder: Path,
    precision: Precision | None,
    note: Note,
    *,
    compares: bool = True,
    hub_name: str | None = None,
) -> Exported:
    """Write a trained model in another form.

    Args:
        name: a run's folder, a folder that a model or an adapter was saved in, or a name of the hub.
        form: `merged`: a whole model that transformers loads alone; `adapter`: what PEFT loads beside the base model;
            `gguf`: one file for llama.cpp; `onnx`: one for ONNX's runtimes.
        folder: where to; it must not be there yet.
        precision: of the weights of a whole model; when not named as the base model stores them, in GGUF
            fp16, in ONNX fp32.
        note: told what takes long, and what is unusual.
        compares: whether the logits of both models are compared, which loads one after the other.
        hub_name: what the hub will call the model, so that its card loads it from there; None: it stays here.

    Returns:
        Where it is, and how far its logits are from the run's.

    Raises:
        FtkitError: naming what was given, what was wanted and what to try.
    """
    if precision is not None and (form == "adapter" or (precision == "q8_0" and form != "gguf")):
        raise ConfigError(f"--precision {precision} does not go with --to {form}; leave it out")
    if folder.exists():
        raise ConfigError(f"{folder} is there already; name another folder with --output, or remove it")
    config = open_config(name)
    source = as_safetensors(resolve_source(config.model, config.task), note)
    if form == "adapter" and hub_name is not None and Path(source.name).is_dir():
        raise ConfigError(
            f"the base model of {name} is a folder of this machine, {source.name}, and an adapter on the hub would not "
            "find it; export it with --to merged"
        )
    with written_aside(folder, "name another with --output") as aside:
        _WRITERS[form](name, source, precision, aside, note)
        _write_card(name, form, source, folder, aside, hub_name, note)
        if form in ("adapter", "merged"):  # the others are for other programs
            _write_origin(name, source, aside)
    if compares and form != "adapter" and config.method.name == "qlora":
        note("frozen weights were in 4 bits when the run was scored; these are as they were before, so logits differ")
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    place = next((file for file in folder.iterdir() if file.suffix in (".gguf", ".onnx")), folder)
    return Exported(form, place, num_bytes, difference(name, place, note) if compares else None)


def _copy_adapter(name: str, source: Source, precision: Precision | None, folder: Path, note: Note) -> None:  # noqa: ARG001  # as any writer
    if source.adapter is None:
        raise ModelError(f"{name} is a whole model and not an adapter; export it with --to merged")
    _copy(source.adapter, folder, {".safetensors", *_SETTINGS})


def _write_merged(name: str, source: Source, precision: Precision | None, folder: Path, note: Note) -> None:
    config = open_config(name)
    tokenizer = load_tokenizer(source)
    labels = labels_of(name, source, config.task)
    names, kind = (labels.names, labels.kind) if labels else (None, None)
    architecture = load_config(source, names, tokenizer.pad_token_id, kind)
    dtype = getattr(torch, TORCH_NAMES[precision]) if precision else stored_dtype(source) or torch.float32
    write_merged(settle_start(config, source, tokenizer), source, architecture, dtype, folder, note)
    save_tokenizer(tokenizer, source, folder)


def _write_gguf(name: str, source: Source, precision: Precision | None, folder: Path, note: Note) -> None:
    """Merge into a temporary folder, and write that as one file."""
    config, kind = open_config(name), precision or "fp16"
    if config.task != "causal-lm":
        raise ModelError(f"{name} is a classifier, and a GGUF file holds a language model; export it with --to merged")
    with tempfile.TemporaryDirectory(dir=folder) as merged:
        _write_merged(name, source, None, Path(merged), note)
        label = from_root(name).name
        write_gguf(config, Source(merged), folder / f"{label}-{kind}.gguf", kind, label)


def _write_onnx(name: str, source: Source, precision: Precision | None, folder: Path, note: Note) -> None:
    """Merge into a temporary folder, and write that as one file, with its settings and tokenizer beside it."""
    kind = precision or "fp32"
    with tempfile.TemporaryDirectory(dir=folder) as merged:
        _write_merged(name, source, kind, Path(merged), note)
        write_onnx(open_config(name), Source(merged), getattr(torch, TORCH_NAMES[kind]), folder)
        _copy(Path(merged), folder, _SETTINGS)


def _copy(source: Path, folder: Path, endings: Collection[str]) -> None:
    for file in source.iterdir():
        if file.is_file() and file.suffix in endings:
            shutil.copyfile(file, folder / file.name)


_WRITERS: Mapping[Form, Callable[[str, Source, Precision | None, Path, Note], None]] = {
    "adapter": _copy_adapter,
    "merged": _write_merged,
    "gguf": _write_gguf,
    "onnx": _write_onnx,
}


def _write_card(  # noqa: PLR0913  # what a card tells of
    name: str, form: Form, source: Source, folder: Path, aside: Path, hub_name: str | None, note: Note
) -> None:
    run = find_run(name)
    if run is not None and (run / CARD).is_file():
        (aside / CARD).write_text(hub_card(run, form, source, folder, hub_name, note), encoding="utf-8")


def _write_origin(name: str, source: Source, aside: Path) -> None:
    settings = find_settings(name)
    if settings is not None:
        labels = labels_of(name, source, open_config(name).task)
        write_origin(aside, load_settings(settings), labels_line(labels))
