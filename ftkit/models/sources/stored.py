"""The weights of a model on the disk, read a tensor at a time by the names that the model itself has."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ftkit.errors import ModelError
from ftkit.models.sources.source import Source, explained_loading

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OLD_ENDINGS = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
"""As checkpoints of 2018 call what is now weight and bias (transformers 5.23, conversion_mapping.py)."""


@dataclass(frozen=True)
class Stored:
    """The files of a model, and where in them each of its tensors lies.

    Attributes:
        files: the open files, by the names of their tensors.
        names: of the tensors in these files, by their names in the model.
    """

    files: Mapping[str, Any]
    names: Mapping[str, str]

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor by its name in the model, as it is stored.

        Raises:
            KeyError: it is not stored; see `lacks`.
        """
        stored = self.names[name]
        tensor: torch.Tensor = self.files[stored].get_tensor(stored)
        return tensor

    def lacks(self, names: Iterator[str]) -> list[str]:
        """Return which of these tensors of the model are not stored."""
        return [name for name in names if name not in self.names]


@contextmanager
def open_stored(source: Source, model: nn.Module) -> Iterator[Stored]:
    """Open the safetensors files of a model.

    Args:
        source: where the model is; without a GGUF file.
        model: the transformers model itself, on `meta` or not; what it calls its tensors.

    Yields:
        The files and the names. Where files and model differ by more than a prefix or an old ending, such as experts
        that are stored one by one, the names lack these tensors.

    Raises:
        ModelError: there are no such files, or one of them is damaged.
    """
    with ExitStack() as stack, explained_loading(source, "weights"):
        opened = [stack.enter_context(safe_open(path, "pt")) for path in weight_paths(source)]
        if not opened:
            raise ModelError(f"{source.name} has no {_WHOLE}; give a model whose weights are safetensors")
        files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118  # it is not a mapping
        yield Stored(files, names_in_files(model, files))


def weight_paths(source: Source) -> Iterator[str]:
    """Yield the safetensors files of a model one by one, from a folder or from the hub's cache.

    Args:
        source: where the model is; without a GGUF file.

    Yields:
        One file, or those that the model's index names, in its order; none where there are no safetensors.

    Raises:
        ModelError: a file that the index names is not there.
    """
    from transformers.utils.hub import cached_file

    def path(name: str) -> str | None:
        found: str | None = cached_file(
            source.name, name, revision=source.revision, _raise_exceptions_for_missing_entries=False
        )
        return found

    whole, index = path(_WHOLE), path(_INDEX)
    if whole is not None:
        yield whole
    elif index is not None:
        for shard in dict.fromkeys(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()):
            found = path(shard)
            if found is None:
                raise ModelError(f"{source.name} has no {shard}, which its index names; copy or download it again")
            yield found


def names_in_files(model: nn.Module, files: Collection[str]) -> dict[str, str]:
    """Return the tensors of a model and what they are called in its files.

    Args:
        model: the transformers model itself, on `meta` or not.
        files: the names of the tensors that are stored.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    aliases: dict[int, list[str]] = {}
    for name, tensor in _tensors(model):
        aliases.setdefault(id(tensor), []).append(name)
    names = {}
    for name, tensor in _tensors(model):
        found = next((one for alias in aliases[id(tensor)] for one in _spellings(alias, prefix) if one in files), None)
        if found is not None:
            names[name] = found
    return names


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _spellings(name: str, prefix: str) -> Iterator[str]:
    """Yield how a tensor may be called in a file: with and without the prefix of the task's class, and as of old."""
    for spelling in (name, name.removeprefix(prefix), f"{prefix}{name}"):
        yield spelling
        for new, old in _OLD_ENDINGS:
            if spelling.endswith(new):
                yield spelling.removesuffix(new) + old
