"""What the system says of this process's memory; a figure that cannot be taken is None."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_resident_bytes() -> int | None:
    """Return the most resident memory that this process has had since its start or `reset_peaks` (Linux: VmHWM)."""
    if not _STATUS.is_file():
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else None


def peak_allocator_bytes(device: "torch.device") -> tuple[int | None, int | None]:
    """Return the peaks of live tensors and of the caching allocator's segments, in bytes; None on a CPU."""
    import torch

    if device.type == "cpu":
        return None, None
    return torch.accelerator.max_memory_allocated(device), torch.accelerator.max_memory_reserved(device)


def reset_peaks(device: "torch.device") -> None:
    """Let the peaks start anew from what is held now."""
    import torch

    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
    elif _CLEAR.is_file():
        _CLEAR.write_text("5")
