"""Memory of the host that the system does not page out, from which copies to a GPU run beside the computation."""

import weakref
from contextlib import suppress

import torch

_PORTABLE = 1
"""`cudaHostRegisterPortable`: pinned for all devices of the process."""


def pinned(num_bytes: int) -> torch.Tensor:
    """Return pinned memory; where the system refuses that, as WSL may, or has no GPU, ordinary memory.

    Args:
        num_bytes: that it has.

    Returns:
        uint8, one dimension, without values.
    """
    if torch.cuda.is_available():
        try:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            pass  # the copies wait then
    return torch.empty(num_bytes, dtype=torch.uint8)


def pin(memory: torch.Tensor, owner: object) -> bool:
    """Pin memory that is there, to the byte: torch's allocator would round it up to the next power of two.

    Args:
        memory: uint8, one dimension, on the CPU.
        owner: the memory stays pinned as long as this lives, and nobody copies out of it later.

    Returns:
        Whether it is pinned now; it is not where there is no GPU, or the system refuses.
    """
    if not torch.cuda.is_available():
        return False
    if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), _PORTABLE)) != 0:
        _forget_error()
        return False
    # Not at the end of the process, which takes all with it: CUDA may have gone before.
    weakref.finalize(owner, _unpin, memory).atexit = False
    return True


def _unpin(memory: torch.Tensor) -> None:
    try:
        torch.cuda.synchronize()  # a copy may still read it, and torch keeps watch over memory of its own alone
    finally:  # or CUDA would take what comes to lie at that address for pinned
        if int(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())) != 0:
            _forget_error()


def _forget_error() -> None:
    """Let CUDA forget an error that it keeps for whoever asks next: torch, behind each launch, which would fail.

    The launch itself forgets it (c10/cuda/CUDAException.cpp), and so does an allocation for it that is refused
    (c10/cuda/CUDACachingAllocator.cpp).
    """
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")
