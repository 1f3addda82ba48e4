"""Name what decides the figures: the versions of the libraries, and the device."""

import platform
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def versions() -> dict[str, str]:
    """Return the versions of what decides the figures; those of Python, CUDA or ROCm too."""
    import torch

    names = ("ftkit", "torch", "transformers", "peft", "deepspeed", "bitsandbytes", "accelerate", "datasets")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    toolkits = {"cuda": torch.version.cuda, "rocm": torch.version.hip}
    return found | {name: version for name, version in toolkits.items() if version}


def device_name(device: "torch.device") -> str:
    """Return what computes, such as `NVIDIA T4` or `cpu`."""
    import torch

    if device.type == "cpu":
        return "cpu"
    name = getattr(torch.get_device_module(device), "get_device_name", None)  # MPS has none
    return str(name(device)) if name else device.type
