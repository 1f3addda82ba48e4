"""Name what decides the figures: the versions of the libraries, and the device."""

import platform
from importlib import metadata
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from ftkit.errors import DependencyError

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


def check_versions() -> None:
    """Refuse libraries of versions that ftkit was not made for; it uses names of theirs that change between versions.

    Raises:
        DependencyError: naming each library, what is there and what is needed.
    """
    wrong = [text for line in _own_requirements() if (text := _unmet(line))]
    if wrong:
        raise DependencyError(f"{'; '.join(wrong)}: pip install --upgrade ftkit brings what it needs")


def _own_requirements() -> list[str]:
    """Return what ftkit needs, without its extras; nothing where it runs from a checkout that is not installed."""
    try:
        lines = metadata.requires("ftkit") or []
    except metadata.PackageNotFoundError:
        return []
    return [line for line in lines if "extra ==" not in line]


def _unmet(line: str) -> str | None:
    """Return what is wrong with a library, if anything; one that is missing is told where it is used."""
    needed = Requirement(line)
    try:
        there = metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        return None
    if needed.specifier.contains(there, prereleases=True):
        return None
    return f"{needed.name} {there} is installed, and ftkit needs {needed.name}{needed.specifier}"


def device_name(device: "torch.device") -> str:
    """Return what computes, such as `NVIDIA T4` or `cpu`."""
    import torch

    if device.type == "cpu":
        return "cpu"
    name = getattr(torch.get_device_module(device), "get_device_name", None)  # MPS has none
    return str(name(device)) if name else device.type
