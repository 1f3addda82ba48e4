"""What is known of a trunk before its model is loaded: where it ends, how it pads, which entries hold what it makes.

An address needs the model; this needs its files alone, so a run that finds all its hidden states in the cache loads
none of the weights that made them.

    trunk/9d41....known.json      by a digest of the weights' files, the settings and the tokens
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ftkit.data.batching import Padding
from ftkit.errors import FtkitError
from ftkit.machine.disk import explained_writing, replace_text
from ftkit.machine.sealed import digest_of
from ftkit.models.sources.source import Source, weight_files
from ftkit.models.trunk import entries
from ftkit.models.trunk.address import architecture_facts, digest_tokens, versions_that_matter
from ftkit.models.trunk.cut import Cut

_SUFFIX = ".known.json"


@dataclass(frozen=True)
class Known:
    """What an earlier run has found out.

    Attributes:
        cut: where the trunk ends.
        padding: what fills up, and where.
        is_alone: whether sequences run one at a time, since padding changes what the model makes of them.
        without: the modules whose weights need not be loaded, by their names in the model that adapters are around.
        entries: split to the name of its entry.
    """

    cut: Cut
    padding: Padding
    is_alone: bool
    without: tuple[str, ...]
    entries: Mapping[str, str]

    @property
    def paths(self) -> dict[str, Path]:
        """Split to the folder of its entry."""
        return {split: entries.folder() / name for split, name in self.entries.items()}


def key_of(source: Source, architecture: Any, splits: Mapping[str, Any], settings: Sequence[object]) -> str | None:
    """Return the key by which a trunk is known.

    Args:
        source: where the weights are.
        architecture: the transformers configuration of the model.
        splits: name to sequences.
        settings: of the run, all that decide the trunk, its end or the padding.

    Returns:
        A SHA-256, in hexadecimal; None where the weights are not in files that are here, or an adapter is among them.
    """
    files = weight_files(source)
    if not files or source.adapter is not None:
        return None
    digest = hashlib.sha256(repr((versions_that_matter(), settings)).encode())
    digest.update(json.dumps(architecture_facts(architecture), sort_keys=True, default=str).encode())
    for file in files:
        digest.update(f"{file.name} {digest_of(file)}".encode())
    for name, split in splits.items():
        digest.update(name.encode())
        digest_tokens(digest, split)
    return digest.hexdigest()


def look_up(key: str) -> Known | None:
    """Return what is known under a key; None where nothing is, or nothing that can be read."""
    try:
        found = json.loads(_file(key).read_text(encoding="utf-8"))
        cut = found["cut"]
        layers = tuple((str(name), form) for name, form in cut["layers"])
        made = Cut(**cut | {"dtype": getattr(torch, cut["dtype"]), "below": tuple(cut["below"]), "layers": layers})
        padding = Padding(**found["padding"])
        return Known(made, padding, found["is_alone"], tuple(found["without"]), dict(found["entries"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def keep(key: str, known: Known) -> None:
    """Write down what is known; where the disk refuses, the next run finds it out again."""
    found = asdict(known)
    found["cut"]["dtype"] = str(known.cut.dtype).removeprefix("torch.")
    try:
        with explained_writing(entries.folder(), entries.ELSEWHERE):
            entries.folder().mkdir(parents=True, exist_ok=True)
            replace_text(_file(key), json.dumps(found, indent=2))
    except FtkitError:
        _file(key).unlink(missing_ok=True)


def _file(key: str) -> Path:
    return entries.folder() / f"{key[:32]}{_SUFFIX}"
