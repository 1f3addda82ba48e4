"""Go on from an adapter: find its base model, its settings and its labels; its weights are loaded where PEFT is."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from ftkit.config.methods import MethodSection
from ftkit.config.paths import from_root, is_there, looks_like_path
from ftkit.config.tree import RunConfig
from ftkit.errors import ModelError
from ftkit.records.files import MODEL, RECORD, resume_flag
from ftkit.records.origin import kept_labels
from ftkit.records.schema import LabelsLine

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_SETTINGS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "targets": "target_modules",
    "layers": "layers_to_transform",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
"""A setting of the method, to the field of PEFT's configuration (peft 0.21, tuners/lora/config.py)."""
_OTHERS = ("rank_pattern", "alpha_pattern", "exclude_modules", "layer_replication", "lora_bias")
"""Fields of an adapter that ftkit makes none of; they have to be empty."""


def model_folder(path: Path) -> Path:
    """Return the folder of a saved model or adapter: the one that is named, or `model` in the folder of a run."""
    saved = ("config.json", CONFIG)
    is_run = not any((path / name).is_file() for name in saved) and (path / RECORD).is_file()
    if is_run and not (path / MODEL).is_dir():
        raise ModelError(
            f"the run in {path} has left no model; finish it with {resume_flag(path)}, or name another model"
        )
    return path / MODEL if is_run else path


def find_adapter(name: str) -> Path | None:
    """Return the folder of an adapter by its name or its run's; None where a name is not that of an adapter."""
    path = from_root(name)
    if not is_there(path) or not path.is_dir():
        return None
    folder = model_folder(path)
    return folder if (folder / CONFIG).is_file() and not (folder / "config.json").is_file() else None


def base_of(adapter: Path) -> tuple[str, str | None]:
    """Return the name of an adapter's base model, from the root where it is a folder, and its revision on the hub.

    Raises:
        ModelError: the adapter does not say it, or says a folder that is not there.
    """
    fields = _fields(adapter)
    name = fields.get("base_model_name_or_path")
    if not name:
        raise ModelError(f"{adapter / CONFIG} does not name its base model; write it as base_model_name_or_path")
    places = (from_root(name), from_root(adapter / name))
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None and looks_like_path(name):
        raise ModelError(
            f"{adapter} is an adapter of the model in {name}, which is not there; put the model back, or write where "
            f"it is as base_model_name_or_path in {adapter / CONFIG}"
        )
    return (name if folder is None else str(folder)), fields.get("revision")


def asked_names(name: str) -> tuple[str, ...]:
    """Return what loading a model may ask the hub for: the model, and the base of an adapter that is here."""
    adapter = find_adapter(name)
    return (name,) if adapter is None else (name, base_of(adapter)[0])


def with_adapter(config: RunConfig) -> RunConfig:
    """Return a run whose method has the settings of the adapter that it goes on from, where it goes on from one.

    Raises:
        ModelError: the method makes no adapters, or was set to make other ones.
    """
    adapter = find_adapter(config.model.name)
    if adapter is None:
        return config
    if not config.method.is_adapter:
        raise ModelError(
            f"{config.model.name} is an adapter, and {config.method.name} trains a whole model; go on with --method "
            f"lora or qlora, or start from its base model {base_of(adapter)[0]}"
        )
    return config.model_copy(update={"method": _with_settings(config.method, adapter)})


def labels_of(adapter: Path) -> LabelsLine | None:
    """Return the labels that an adapter's head was trained for, as its run kept them; None without a head.

    Raises:
        ModelError: it has a head, and nothing says which label is which number.
    """
    if not _fields(adapter).get("modules_to_save"):
        return None
    labels = kept_labels(adapter)
    if labels is None:
        raise ModelError(
            f"the adapter in {adapter} has a head, and nothing in or above its folder says which label is which "
            "number; put it back into the folder of its run, or draw a new head with --set model.new_head=true"
        )
    return labels


def classifies(adapter: Path) -> bool:
    """Return whether an adapter is that of a classifier, by what PEFT has written of it."""
    fields = _fields(adapter)
    base = (fields.get("auto_mapping") or {}).get("base_model_class") or ""
    return fields.get("task_type") == "SEQ_CLS" or "ForSequenceClassification" in base


def _with_settings(method: MethodSection, adapter: Path) -> MethodSection:
    """Return a method with an adapter's settings; those that were set by hand have to be the same."""
    theirs = _settings(adapter)
    others = [
        f"method.{name}={_written(value)}"
        for name, value in theirs.items()
        if name in method.model_fields_set and name != "targets" and getattr(method, name) != value
    ]
    if others:
        raise ModelError(f"the adapter in {adapter} was made with {', '.join(others)}; leave these settings out")
    given = {name: value for name, value in theirs.items() if name not in method.model_fields_set}
    return method.model_copy(update=given)


def _settings(adapter: Path) -> dict[str, Any]:
    fields = _fields(adapter)
    strange = [name for name in _OTHERS if fields.get(name)]
    strange += ["bias"] if fields.get("bias", "none") != "none" else []
    strange += ["target_modules"] if isinstance(fields.get("target_modules"), str) else []
    if fields.get("peft_type") != "LORA" or strange:
        kind = f"of the kind {fields.get('peft_type')}" if not strange else f"with {', '.join(strange)}"
        raise ModelError(f"the adapter in {adapter} is {kind}, which ftkit does not train; merge it into its base")
    found: dict[str, Any] = {name: fields.get(theirs) for name, theirs in _SETTINGS.items()}
    layers = found["layers"]
    # Which parameters those are is looked at when the weights are loaded: all of them have to have a place.
    experts = ("experts",) if fields.get("target_parameters") else ()
    return found | {
        "targets": (*sorted(found["targets"] or ()), *experts),
        "layers": layers if layers is None else tuple([layers] if isinstance(layers, int) else layers),
        "use_rslora": bool(found["use_rslora"]),
        "use_dora": bool(found["use_dora"]),
    }


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fields(adapter: Path) -> dict[str, Any]:
    return _read(adapter / CONFIG, (adapter / CONFIG).stat().st_mtime_ns)


@cache
def _read(file: Path, changed: int) -> dict[str, Any]:  # noqa: ARG001  # a file that has changed is read anew
    try:
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error}); give the folder that an adapter was saved in") from None
    return fields
