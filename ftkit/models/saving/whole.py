"""Write a whole model as transformers loads it, a tensor at a time.

Most tensors are stored as the model has them. Some models hold as one what their files have as several, such as the
experts of a mixture, or the other way round. transformers turns one into the other; it is asked on `meta`, where no
memory is needed, which tensors it has to be given together:

    in the model                     in the files                        together
    layers.0.mlp.down_proj           layers.0.mlp.down_proj              this one alone
    layers.0.mlp.experts.down_proj   layers.0.mlp.experts.{0,1}.w2       this one alone, which is taken apart
    layers.0.attn.{q,k,v}            layers.0.attn.qkv                   those of layer 0
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ftkit.models.partitions import own_tensors, whole_shape
from ftkit.models.saving import foreign
from ftkit.models.saving.dtypes import Named
from ftkit.models.saving.write import MAX_SHARD_BYTES, Kinds, write_tensors

_LAYER = re.compile(r".*?\.\d+\.")
"""The beginning of the names of a layer: all up to the first number."""
_TOGETHER: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: match[0] if (match := _LAYER.match(name)) else name,
    lambda _: "",
)
"""The group of a tensor, by its name; the first of these that gives what all tensors at once would give is taken."""


def save_whole(
    model: nn.Module, folder: Path, weights: Named, dtype: torch.dtype, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write a model as transformers loads it, in several files where it is large.

    Args:
        model: a transformers model; its own tensors may be partitioned.
        folder: where to; it has no other weights.
        weights: all of them, whole, one after another, a tied one under its first name.
        dtype: what weights are rounded to; buffers of other kinds of numbers stay as they are.
        max_shard_bytes: of one file.
    """
    cast(Any, model).save_pretrained(folder, state_dict={})  # the settings, and the code of a model that brings its own
    ignored = foreign.not_saved(model)
    kinds = {
        name: (dtype if one.is_floating_point() else one.dtype, tuple(whole_shape(one)))
        for name, one in own_tensors(model).items()
        if name not in ignored
    }
    write_as_in_files(model, folder, weights, kinds, max_shard_bytes)


def write_as_in_files(
    model: nn.Module, folder: Path, weights: Named, kinds: Kinds, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the weights of a model in the form that its files have them in.

    Args:
        model: a transformers model, which knows how its files differ from it; its own tensors are not read.
        folder: where to.
        weights: one after another, by their names in the model.
        kinds: those of the weights that are written.
        max_shard_bytes: of one file.
    """
    in_files, groups = _in_files(model, kinds)
    write_tensors(folder, in_files, _converted(model, weights, groups), max_shard_bytes)


def _in_files(model: nn.Module, kinds: Kinds) -> tuple[Kinds, Mapping[str, str]]:
    """Return what the files are going to have, and the group of each tensor of the model that is stored."""
    metas = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in kinds.items()}
    whole = _kinds(foreign.as_in_files(model, metas))
    for group_of in _TOGETHER:
        groups = {name: group_of(name) for name in metas}
        if _kinds(dict(_converted(model, iter(metas.items()), groups))) == whole:
            return whole, groups
    raise AssertionError("all tensors at once are what the whole was made of")


def _converted(model: nn.Module, weights: Named, groups: Mapping[str, str]) -> Named:
    """Yield the tensors of the files, each when all that it is made of has come."""
    left, waiting = Counter(groups.values()), defaultdict[str, dict[str, torch.Tensor]](dict)
    for name, tensor in weights:
        if name not in groups:
            continue
        group = groups[name]
        waiting[group][name] = tensor
        if len(waiting[group]) == left[group]:
            yield from foreign.as_in_files(model, waiting.pop(group)).items()


def _kinds(tensors: Mapping[str, torch.Tensor]) -> Kinds:
    return {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()}
