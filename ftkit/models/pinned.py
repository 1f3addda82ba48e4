"""Memory of the host that the system does not page out, from which copies to a GPU run beside the computation."""

import torch


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
