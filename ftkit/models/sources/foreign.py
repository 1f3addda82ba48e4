"""Names of transformers' loading that are not public, replaced while weights are loaded in part."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ftkit.models.foreign import patched
from ftkit.models.sources.positions import PositionFile


@contextmanager
def reading_what_stays() -> Iterator[None]:
    """Let transformers read the weights that it keeps, by position, and none of those that stay on `meta`.

    It reads every tensor before it moves it where `device_map` says (transformers 5.23, core_model_loading.py,
    `_materialize_copy`), out of files that it maps (modeling_utils.py, `safe_open`).
    """
    from transformers import core_model_loading, modeling_utils

    plain = core_model_loading._materialize_copy

    def materialize(tensor: Any, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        if str(device) == "meta" and not isinstance(tensor, torch.Tensor):
            return torch.empty(tensor.get_shape(), dtype=dtype, device="meta")
        return plain(tensor, device, dtype)

    def open_by_position(path: Any, **_: Any) -> PositionFile:
        return PositionFile(path)

    with (
        patched(core_model_loading, "_materialize_copy", materialize),
        patched(modeling_utils, "safe_open", open_by_position),
    ):
        yield
