"""The model card of an exported model: the card of its run, with a program for its new form and what the hub reads."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ftkit.config.files import parse_yaml
from ftkit.config.paths import from_root
from ftkit.config.tree import ModelConfig
from ftkit.errors import DependencyError, ModelError
from ftkit.inference.opened import labels_of
from ftkit.models.card import Card
from ftkit.models.sources.source import Source, load_tokenizer, resolve_source
from ftkit.records.files import CARD, MODEL, read_record
from ftkit.records.schema import RunLine
from ftkit.report.words import place

Form = Literal["merged", "adapter", "gguf", "onnx"]

_ONNX = """\
import onnxruntime
from transformers import AutoTokenizer

folder = {folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(folder + "/model.onnx")
inputs = tokenizer(["A text.", "Another one."], padding=True, return_token_type_ids=False, return_tensors="np")
logits = session.run(["logits"], {{name: inputs[name] for name in ("input_ids", "attention_mask")}})[0]
print(logits)
"""
_PIPELINES = {"sequence-classification": "text-classification", "causal-lm": "text-generation"}
"""As the hub calls what a model is for."""


def hub_card(
    run: Path, form: Form, source: Source, folder: Path, hub_name: str | None, note: Callable[[str], None]
) -> str:
    """Return the card of an exported model.

    Args:
        run: the folder of its run.
        form: what it was exported to.
        source: where the model is, or the base model of the adapter.
        folder: where the exported model will be.
        hub_name: what the hub will call it, for a card that names nothing of this machine; None: it stays here.
        note: told where the licence of the base model is not known.

    Returns:
        Markdown, which begins with YAML as the hub reads it.
    """
    text = (run / CARD).read_text(encoding="utf-8")
    line = read_record(run).run
    card = _card(run, line, source, folder, hub_name)
    if form == "adapter":
        was = replace(card, folder=from_root(run) / MODEL, hub_name=None)
        text = text.replace("\n".join(was.place()), "\n".join(card.place()))
        text = text if hub_name is None else text.replace("import os\n\n", "", 1)
    else:
        before, _, rest = text.partition("```python\n")
        text = f"{before}{_use(form, card)}{rest.partition('```')[2]}"
    if hub_name is not None:
        for name in (line.config["model"]["name"], line.config["data"]["dataset"]):
            text = text.replace(place(name), Path(name).name if Path(name).is_absolute() else name)
    return f"---\n{_metadata(form, line, note)}\n---\n\n{text}"


def _base(line: RunLine) -> Source | None:
    """Return the model that a run began with, whose licence holds for what it made; None: it is gone."""
    try:
        return resolve_source(ModelConfig(**line.config["model"]), line.config["task"])
    except (ModelError, DependencyError):
        return None


def _use(form: Form, card: Card) -> str:
    """Return how the model is used, as Markdown."""
    if form == "gguf":
        get = (
            ""
            if card.hub_name is None
            else f"$ hf download {card.hub_name} --local-dir {shlex.quote(card.folder.name)}\n"
        )
        folder = card.folder if card.hub_name is None else card.folder.name
        chat = f"```console\n{get}$ ftkit chat {shlex.quote(str(folder))}\n```"
        return f"{chat}\n\nAnd all that reads GGUF, such as llama.cpp, reads it too."
    if form == "onnx":
        imports = "" if card.hub_name is None else "from huggingface_hub import snapshot_download\n"
        folder = _written(card.folder) if card.hub_name is None else f"snapshot_download({json.dumps(card.hub_name)})"
        return f"```python\n{imports}{_ONNX.format(folder=folder)}```"
    program = "\n".join(card.program("transformers", "AutoModelFor"))
    return f"```python\n{program}\n```"


def _card(run: Path, line: RunLine, source: Source, folder: Path, hub_name: str | None) -> Card:
    return Card(
        folder=from_root(folder),
        task=line.config["task"],
        labels=labels_of(str(run), source, line.config["task"]),
        pad_token_id=load_tokenizer(source).pad_token_id,
        precision=line.precision,
        max_length=line.config["data"]["max_length"],
        example=line.example,
        hub_name=hub_name,
    )


def _metadata(form: Form, line: RunLine, note: Callable[[str], None]) -> str:
    """Return what the hub reads: base model, licence, task."""
    from huggingface_hub import ModelCardData

    base = _base(line)
    license_ = None if base is None else _license(base)
    if license_ is None:
        name = line.config["model"]["name"]
        note(f"nothing says under which licence {name} may be used; write it into {CARD} before you share the model")
    data = ModelCardData(
        base_model=None if base is None or Path(base.name).is_dir() else base.name,
        license=license_,
        library_name={"adapter": "peft", "merged": "transformers", "gguf": "gguf", "onnx": "onnx"}[form],
        pipeline_tag=_PIPELINES[line.config["task"]],
        tags=["ftkit", line.config["method"]["name"]],
    )
    return str(data.to_yaml())


def _license(source: Source) -> str | None:
    """Return the licence on the card of the base model, None where it has no card or the card does not say it."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from transformers.utils.hub import cached_file

    path = cached_file(
        source.name,
        CARD,
        revision=source.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    head = REGEX_YAML_BLOCK.search(Path(path).read_text(encoding="utf-8-sig", errors="replace"))
    found = None if head is None else parse_yaml(head[2], Path(path))
    license_ = found.get("license") if isinstance(found, dict) else None
    return None if license_ is None else str(license_)


def _written(folder: Path) -> str:
    """Return a folder as a card's program writes it."""
    return json.dumps(str(from_root(folder)), ensure_ascii=False)
