"""Names of others that are not public and that streamed layers rest on; see `ftkit.models.foreign`."""

import torch
from torch import nn

_SCALED, _MODELS = "ScaledWordEmbedding", "transformers.models."


def num_references(storage: torch.UntypedStorage) -> int:
    """Return how many tensors and other owners hold a storage: `_storage_Use_Count` (torch 2.13, _C/__init__.pyi)."""
    return int(torch._C._storage_Use_Count(storage._cdata))


def is_table(module: nn.Module) -> bool:
    """Return whether a module looks rows of its weight up, and at most scales them.

    transformers 5.23 has two dozen classes whose names end so, which all do the same (models/gemma2/modeling_gemma2.py,
    models/bart/modeling_bart.py ...): `super().forward(input_ids) * self.embed_scale`. What such a class of any
    other code does is not known.
    """
    kind = type(module)
    is_scaled = kind.__name__.endswith(_SCALED) and kind.__module__.startswith(_MODELS)
    return kind is nn.Embedding or (kind.__base__ is nn.Embedding and is_scaled)


def scaled(table: nn.Embedding, rows: torch.Tensor) -> torch.Tensor:
    """Return rows as a table of these classes gives them: `self.embed_scale` is a number, or a buffer that is cast."""
    scale = getattr(table, "embed_scale", None)
    if scale is None:
        return rows
    return rows * (scale.to(rows.dtype) if isinstance(scale, torch.Tensor) else scale)
