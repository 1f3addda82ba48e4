"""What a process takes before any model."""

from ftkit.plan.inputs.target import Target
from ftkit.units import format_bytes

RUNTIME_BYTES = 560 * 10**6
"""Resident memory of one process on a CPU that trains, before any weight: Python, torch, transformers, peft, readers of
data, the planner, and what a step touches of them (MiniLM in fp32, in /proc/self/status)."""
CUDA_HOST_BYTES = 15 * 10**8
"""Host memory of one process with CUDA's libraries: 1.6 and 1.7 GB with the 0.25 GB of GPT-2 in them, and 1.3 to 1.9 of
larger models without the file that passed (an H200, torch 2.11)."""


def beyond_any_model(target: Target) -> str | None:
    """Return what a process takes whatever its model, where a target has less than that; None where it has enough."""
    taken = target.num_devices * (CUDA_HOST_BYTES if target.device_type == "cuda" else RUNTIME_BYTES)
    if (context := target.context_range[0]) > target.memory_bytes:
        return f"CUDA's context alone takes {format_bytes(context)}, whatever the model"
    if target.ram_bytes is not None and taken > target.ram_bytes:
        return f"libraries alone take {format_bytes(taken)} of host memory, whatever the model"
    return None
