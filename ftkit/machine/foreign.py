"""Names and words of other libraries that are not public, and that ftkit relies on from its lowest rooms up.

Each says in which version and file it was read; `tests/contracts/test_foreign.py` asks the installed library for it.
"""

from enum import StrEnum


class TorchSays(StrEnum):
    """Words by which an error of torch is told from others of its class (torch 2.13)."""

    NO_HOST_MEMORY = "can't allocate memory"
    """c10/core/impl/alloc_cpu.cpp: the C library gave none."""
    ON_META = "meta"
    """torch/_subclasses, torch/_refs, aten/src/ATen: `meta` lacks an operator or the value that is asked for."""
    NO_NUMPY = "not supported for tensor subclasses"
    """torch/csrc/Tensor.cpp: a fake tensor cannot become an array."""
    OTHER_DTYPE = "expected scalar type"
    """aten/src/ATen: an operator has got tensors of two dtypes."""
    NO_EXTENSION = "Error building extension"
    """torch/utils/cpp_extension.py: the compiler failed."""


PEER_IS_LOST = (
    "Timed out waiting",
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "remote process exited",
    "NCCL communicator was aborted",
)
"""Words of gloo, of NCCL and of the system below them by which another rank is gone (torch 2.13, gloo/transport/tcp and
torch/csrc/distributed/c10d)."""
MEMORY_IS_OUT = (
    TorchSays.NO_HOST_MEMORY,
    "OutOfMemoryError",
    "CUDA out of memory",
    "MemoryError",
    "std::bad_alloc",
    "Cannot allocate memory",
)
"""Words of torch, Python, C++ and the system in the output of a process that ended for lack of memory."""


def record_memory_history(max_entries: int) -> None:
    """Let CUDA's allocator remember what it does and for whom: `_record_memory_history` (torch 2.13, cuda/memory.py).

    Args:
        max_entries: allocations and releases that are remembered, the last ones.
    """
    import torch

    torch.cuda.memory._record_memory_history(max_entries=max_entries, stacks="python")


def write_memory_history(path: str) -> None:
    """Write what CUDA's allocator remembers: `_dump_snapshot` (torch 2.13, cuda/memory.py)."""
    import torch

    torch.cuda.memory._dump_snapshot(path)


def forget_memory_history() -> None:
    """Let CUDA's allocator remember no more: `_record_memory_history` (torch 2.13, cuda/memory.py)."""
    import torch

    torch.cuda.memory._record_memory_history(enabled=None)


def hub_connection_error() -> type[Exception]:
    """Return what the client of the hub raises where a connection breaks (huggingface_hub 2.4, errors.py).

    It is the first parent of the client's own error, of a library for HTTP that differs between versions of the client.
    """
    from huggingface_hub.errors import HfHubHTTPError

    parent: type[Exception] = HfHubHTTPError.__bases__[0]
    return parent
