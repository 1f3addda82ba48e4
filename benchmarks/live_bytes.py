"""Count the bytes of all tensors that are alive, of any program, by what its operators read and make.

It is simpler than the recorder of `ftkit.observe`, and independent of it: a storage counts from the moment at which an
operator first reads or makes it, until nothing refers to it any longer. So weights count, and so does what a library
keeps; what no operator ever touches does not, nor what has no values and takes no memory.
"""

import weakref
from typing import Any

import torch
from torch.utils._pytree import tree_iter

from ftkit.models.foreign import has_values
from ftkit.models.kernels.foreign import DispatchMode


class LiveBytes(DispatchMode):
    """Counts while it is entered.

    Attributes:
        live: bytes of the storages that are alive now.
        peak: the most that were.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it read and made."""
        out = func(*args, **(kwargs or {}))
        for value in tree_iter((args, kwargs, out)):
            if isinstance(value, torch.Tensor) and has_values(value):
                self._count(value)
        self.peak = max(self.peak, self.live)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is not None and known[0]() is not None:
            self.live += size - known[1]  # a storage may have been resized
            self._sizes[key] = known[0], size
            return
        self.live += size
        self._sizes[key] = weakref.ref(storage, lambda _: self._died(key)), size

    def _died(self, key: int) -> None:
        self.live -= self._sizes.pop(key)[1]
