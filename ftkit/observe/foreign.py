"""Names of torch that are not public and that a recorder needs.

Each says in which version and file it was read; `tests/contracts/test_foreign.py` asks the installed torch for it.
"""

from types import FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass_type

MODE_FRAMES = ("_fn", "inner")
"""Functions of torch that wrap each dispatch mode's (torch 2.13, utils/_python_dispatch.py, _compile.py)."""
BACKWARD_FRAME = "_engine_run_backward"
"""The function in which autograd runs a backward (torch 2.13, autograd/graph.py)."""


def fake_device(value: object) -> torch.device | None:
    """Return the device that a fake tensor says it is on, without a dispatch; None: it is not one (_subclasses)."""
    return value.fake_device if isinstance(value, FakeTensor) else None


def wraps_tensors(kind: type) -> bool:
    """Return whether tensors of a type hold other tensors (torch 2.13, utils/_python_dispatch.py)."""
    return bool(is_traceable_wrapper_subclass_type(kind))


def tensor_users(tensor: Any) -> int:
    """Return how many references torch itself has to a tensor (torch 2.13, csrc/autograd/python_variable.cpp)."""
    return int(tensor._use_count())


def is_backward(frame: FrameType | None) -> bool:
    """Return whether a dispatch mode was called by autograd's backward itself, not by code that this runs.

    On an accelerator autograd computes in threads of its own, which no Python code has started: there nothing calls the
    mode (torch 2.13, csrc/autograd/engine.cpp, start_device_threads).

    Args:
        frame: that called the mode; None: nothing in Python did.
    """
    while frame is not None and frame.f_code.co_name in MODE_FRAMES:
        frame = frame.f_back
    return frame is None or frame.f_code.co_name == BACKWARD_FRAME
