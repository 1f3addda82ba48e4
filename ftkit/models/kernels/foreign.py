"""Names of torch that are not public and that the kernels, or a mode which keeps results, need.

Each says in which version and file it was read; `tests/contracts/test_foreign.py` asks the installed torch for it.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode_temporarily


class DispatchMode(TorchDispatchMode):
    """A mode that sees every operator (torch 2.13, utils/_python_dispatch.py); nothing in it is ever compiled."""

    def __init__(self) -> None:
        """Start outside any `with`."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch's

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that torch need not wrap each call in what keeps its compiler out."""
        return False


def top_mode() -> TorchDispatchMode | None:
    """Return the mode that sees the next operator first (torch 2.13, utils/_python_dispatch.py)."""
    return _get_current_dispatch_mode()


def left_for_a_while() -> AbstractContextManager[Any]:
    """Hide the operators of a block from the mode that is asked first (torch 2.13, utils/_python_dispatch.py)."""
    return _pop_mode_temporarily()


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same tensor without its history, with the same count of changes (torch 2.13, utils/checkpoint.py).

    Args:
        tensor: what an operator has returned to a mode.
    """
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return tensor.detach()


def num_changes(tensor: torch.Tensor) -> int:
    """Return how often a tensor was changed in place: `_version` (torch 2.13, utils/checkpoint.py)."""
    return int(tensor._version)


def softmax_backward(grad: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the gradient of what a softmax over the last dimension was taken of: `p * (g - sum(p * g))` in one pass.

    torch 2.13, ATen/native/native_functions.yaml: `_softmax_backward_data`.

    Args:
        grad: of the softmax's result.
        weights: that result, of one shape and dtype with its gradient.
    """
    return torch._softmax_backward_data(grad, weights, -1, grad.dtype)


def is_llama_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm whose forward is compiled to the instructions of Llama's.

    transformers 5.23, models/llama/modeling_llama.py, LlamaRMSNorm; Mistral, Qwen, Granite and others repeat its text.
    """
    if not type(module).__name__.endswith("RMSNorm"):  # asked first: Llama's file takes time to import
        return False
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    theirs, llamas = (getattr(kind.forward, "__code__", None) for kind in (type(module), LlamaRMSNorm))
    return theirs is not None and _meaning(theirs) == _meaning(llamas)


def _meaning(code: Any) -> tuple[Any, ...]:
    return code.co_code, code.co_names, code.co_consts
