"""Files, hub names and demo data to token arrays and batches, with label names and the data's own report."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftkit.data.prepare import prepare_data as prepare_data

__all__ = ["prepare_data"]


def __getattr__(name: str) -> Any:
    """Import the function when it is first asked for: what plans imports this room, and needs no Arrow."""
    if name in __all__:
        return importlib.import_module("ftkit.data.prepare").prepare_data
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
