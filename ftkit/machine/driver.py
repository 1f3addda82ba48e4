"""What an NVIDIA driver says of its GPUs and of who holds them (NVML); the only importer of nvidia-ml-py."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Link:
    """The PCI Express link of a GPU, now and at most; a GPU at rest runs it at its lowest generation.

    Attributes:
        generation, most_generation: such as 4 for PCIe 4.0; the most is what card and slot agree on.
        width, most_width: lanes.
    """

    generation: int
    most_generation: int
    width: int
    most_width: int


def device_process_bytes(device: "torch.device") -> int | None:
    """Return what the driver says that this process holds of a GPU now, in bytes.

    It is the figure of nvidia-smi: context, libraries and segments too. None where the driver is not asked (no NVIDIA
    GPU, no nvidia-ml-py) or does not know this process, as in a container with process numbers of its own.
    """

    def held(nvml: Any) -> int | None:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(_handle(nvml, device))
        found = [one for one in running if one.pid == os.getpid()]
        return int(found[0].usedGpuMemory) if found and found[0].usedGpuMemory else None

    return _ask(held) if device.type == "cuda" else None


def device_joules(device: "torch.device") -> float | None:
    """Return the energy that a GPU has taken since its driver was loaded; None where that is not told."""

    def taken(nvml: Any) -> float:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(_handle(nvml, device))) / 1e3

    return _ask(taken) if device.type == "cuda" else None


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver; None where it is not asked, or does not answer."""
    return _ask(lambda nvml: str(nvml.nvmlSystemGetDriverVersion()))


def device_link(device: "torch.device") -> Link | None:
    """Return the PCI Express link of a CUDA device; None where the driver is not asked, or does not tell."""

    def link(nvml: Any) -> Link:
        handle = _handle(nvml, device)
        return Link(
            nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
            nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),
            nvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
            nvml.nvmlDeviceGetMaxPcieLinkWidth(handle),
        )

    return _ask(link)


def _ask(question: Callable[[Any], Answer]) -> Answer | None:
    """Put a question to NVML; None where it is not installed, or its driver has no answer."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return question(pynvml)
    except pynvml.NVMLError:
        return None


def _handle(nvml: Any, device: "torch.device") -> Any:
    """Return NVML's handle of a device; its own numbering does not follow CUDA_VISIBLE_DEVICES."""
    import torch

    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
