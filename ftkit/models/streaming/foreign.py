"""Names of torch that are not public and that the window asks for; see `ftkit.models.foreign`."""

import torch


def num_references(storage: torch.UntypedStorage) -> int:
    """Return how many tensors and other owners hold a storage: `_storage_Use_Count` (torch 2.13, _C/__init__.pyi)."""
    return int(torch._C._storage_Use_Count(storage._cdata))
