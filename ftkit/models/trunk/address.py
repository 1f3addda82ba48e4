"""The address of hidden states in the cache: a digest of everything that decides them.

Tokens stand for the text, the tokenizer and max_length: these decide nothing else. What runs above the cut, seeds, rank
and labels are left out, so that runs which differ in them share an entry.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import Padding
from ftkit.models.methods.lora import unwrapped
from ftkit.models.streaming.stream import values_of
from ftkit.models.trunk.cut import AROUND, Cut

_FORMAT = 1
"""Of an entry's files; another one is made anew."""
_OF_LABELS = ("id2label", "label2id", "problem_type", "_name_or_path", "architectures", "transformers_version")
"""Fields of a transformers configuration that decide nothing in the trunk."""


def digest_trunk(model: nn.Module, cut: Cut) -> str:
    """Return the digest of a trunk: its weights, its configuration, its border.

    Args:
        model: not closed.
        cut: where the trunk ends.

    Returns:
        A SHA-256, in hexadecimal.
    """
    base = cast(Any, unwrapped(model))
    facts = architecture_facts(base.config)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    border = (cut.entry.removeprefix(AROUND), cut.is_flat, cut.is_pooled, base.config._attn_implementation)
    digest.update(repr(border).encode())
    for name, tensor in _tensors(model, cut):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def address_of(trunk: str, split: TokenSplit, padding: Padding, dtypes: tuple[torch.dtype, ...], device: str) -> str:
    """Return the address of a split's hidden states.

    Args:
        trunk: what `digest_trunk` returned.
        split: the sequences.
        padding: what fills up, and where.
        dtypes: what computes, and what is kept.
        device: the type of what computes; another one rounds otherwise.

    Returns:
        64 characters.
    """
    rest = (*versions_that_matter(), trunk, padding, dtypes, device, split.segments is None)
    digest = hashlib.sha256(repr(rest).encode())
    digest_tokens(digest, split)
    return digest.hexdigest()


def architecture_facts(architecture: Any) -> dict[str, Any]:
    """Return what a transformers configuration says of the trunk."""
    return {key: value for key, value in architecture.to_dict().items() if key not in _OF_LABELS}


def versions_that_matter() -> list[object]:
    """Return the format of an entry's files, and the versions of the code that makes them."""
    return [_FORMAT, *(metadata.version(name) for name in ("ftkit", "torch", "transformers"))]


def digest_tokens(digest: Any, split: TokenSplit) -> None:
    """Feed the sequences of a split to a digest of hashlib's."""
    for array in (split.tokens, split.offsets, split.segments):
        if array is not None:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)


def _tensors(model: nn.Module, cut: Cut) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of the modules below the cut, with their names in the model that adapters are around."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.rpartition(".")[0] in cut.below:
            for part, one in values_of(tensor).items():
                yield f"{name}.{part}".removesuffix(".").removeprefix(AROUND), one
