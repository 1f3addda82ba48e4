"""Give a trained model another form: merged into its base, its adapter ready for the hub; compared with what it was."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from ftkit.config.paths import from_root
from ftkit.config.precision import TORCH_NAMES, SettledPrecision
from ftkit.data.batching import MicroBatch
from ftkit.errors import ConfigError, ModelError
from ftkit.inference.hub_card import Form, hub_card
from ftkit.inference.opened import Opened, find_run, labels_of, open_config, open_model
from ftkit.machine.disk import written_aside
from ftkit.models.export.merge import write_merged
from ftkit.models.export.to_gguf import write_gguf
from ftkit.models.gguf import as_safetensors
from ftkit.models.saved import save_tokenizer, stored_dtype
from ftkit.models.source import Source, load_config, load_tokenizer, resolve_source
from ftkit.models.start import settle_start
from ftkit.records.files import CARD

Note = Callable[[str], None]
Precision = SettledPrecision | Literal["q8_0"]
"""`q8_0`: 8 bits in blocks of 32, of GGUF alone."""

_SEQUENCES, _TOKENS = 8, 32
"""Of the sample on which an exported model is compared with the run's."""


@dataclass(frozen=True)
class Difference:
    """How far the logits of an exported model are from those of the model that was scored.

    Attributes:
        largest: the largest difference of two logits.
        scale: the largest logit.
        same_answers: the share of places whose largest logit is that of the same class or token.
    """

    largest: float
    scale: float
    same_answers: float

    def words(self) -> str:
        """Return this as a sentence."""
        return (
            f"on {_SEQUENCES} x {_TOKENS} tokens logits differ by at most {self.largest:.2g} from those of the "
            f"model that was scored (the largest is {self.scale:.3g}); {self.same_answers:.1%} of the answers are the "
            "same"
        )


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


def export(
    name: str,
    form: Form,
    folder: Path,
    precision: Precision | None,
    note: Note,
    *,
    compares: bool = True,
) -> Exported:
    """Write a trained model in another form.

    Args:
        name: a run's folder, a folder that a model or an adapter was saved in, or a name of the hub.
        form: `merged`: a whole model that transformers loads alone; `adapter`: what PEFT loads beside the base model;
            `gguf`: one file for llama.cpp.
        folder: where to; it must not be there yet.
        precision: of the weights of a whole model; when not named as the base model stores them, in GGUF fp16.
        note: told what takes long, and what is unusual.
        compares: whether the logits of both models are compared, which loads one after the other.

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
    with written_aside(folder, "name another with --output") as aside:
        if form == "adapter":
            _copy_adapter(name, source, aside)
        elif form == "merged":
            _merge(name, source, precision, aside, note)
        else:
            _write_gguf(name, source, precision or "fp16", aside, note)
        _write_card(name, form, source, folder, aside, note)
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    place = next(folder.glob("*.gguf"), folder)
    return Exported(form, place, num_bytes, _compare(name, str(place), note) if compares else None)


def _copy_adapter(name: str, source: Source, folder: Path) -> None:
    if source.adapter is None:
        raise ModelError(f"{name} is a whole model and not an adapter; export it with --to merged")
    for file in source.adapter.iterdir():
        if file.is_file() and file.suffix in (".json", ".safetensors", ".jinja", ".txt", ".model"):
            shutil.copyfile(file, folder / file.name)


def _merge(name: str, source: Source, precision: Precision | None, folder: Path, note: Note) -> None:
    config = open_config(name)
    tokenizer = load_tokenizer(source)
    labels = labels_of(name, source) if config.task == "sequence-classification" else None
    names, kind = (labels.names, labels.kind) if labels else (None, None)
    architecture = load_config(source, names, tokenizer.pad_token_id, kind)
    dtype = getattr(torch, TORCH_NAMES[precision]) if precision else stored_dtype(source) or torch.float32
    write_merged(settle_start(config, source, tokenizer), source, architecture, dtype, folder, note)
    save_tokenizer(tokenizer, source, folder)


def _write_gguf(name: str, source: Source, precision: str, folder: Path, note: Note) -> None:
    """Merge into a folder that goes again, and write that as one file."""
    config = open_config(name)
    if config.task != "causal-lm":
        raise ModelError(f"{name} is a classifier, and a GGUF file holds a language model; export it with --to merged")
    with tempfile.TemporaryDirectory(dir=folder) as merged:
        _merge(name, source, None, Path(merged), note)
        label = from_root(name).name
        write_gguf(config, Source(merged), folder / f"{label}-{precision}.gguf", precision, label)


def _compare(name: str, exported: str, note: Note) -> Difference:
    """Compare the logits of two models in one precision; only one of them is in memory at a time."""
    opened = open_model(name, open_config(name), note)
    batch, settings = _sample(opened), [f"model.precision={opened.run.precision}"]
    before = _logits(opened, batch)
    del opened
    after = _logits(open_model(exported, open_config(exported, settings), note), batch)
    answers = before.argmax(-1), after.argmax(-1)
    return Difference(
        float((before - after).abs().max()), float(before.abs().max()), float((answers[0] == answers[1]).float().mean())
    )


def _sample(opened: Opened) -> MicroBatch:
    """Return sequences to compare on: what a language model writes by itself; for a classifier, tokens at random."""
    torch.manual_seed(0)
    tokens = torch.randint(len(opened.tokenizer), (_SEQUENCES, _TOKENS)).to(opened.reader.device)
    if opened.labels is None:
        model = cast(Any, opened.reader.model)
        tokens = model.generate(
            tokens[:, :1],
            attention_mask=torch.ones_like(tokens[:, :1]),
            do_sample=True,
            min_length=_TOKENS,
            max_length=_TOKENS,
            pad_token_id=opened.tokenizer.pad_token_id,
        )
    return MicroBatch(tokens, labels=torch.zeros(_SEQUENCES, dtype=torch.int64))


def _logits(opened: Opened, batch: MicroBatch) -> torch.Tensor:
    with torch.inference_mode():
        return opened.reader.logits(batch).float().cpu()


def _write_card(name: str, form: Form, source: Source, folder: Path, aside: Path, note: Note) -> None:
    run = find_run(name)
    if run is not None and (run / CARD).is_file():
        (aside / CARD).write_text(hub_card(run, form, source, folder, note), encoding="utf-8")
