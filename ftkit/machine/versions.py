"""Name what decides the figures: the versions of the libraries, and the device."""

import hashlib
import platform
import re
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ftkit.errors import DependencyError

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_EXTRA = re.compile(r"extra == [\"'](\w+)")


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


@cache
def source_digest() -> str:
    """Return the SHA-256 of ftkit's own files, in hexadecimal: a checkout changes under one version."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*")):
        if file.suffix in (".py", ".json", ".yaml"):
            digest.update(f"{file.relative_to(_PACKAGE)} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Needed:
    """A library that ftkit uses, as its own package names it.

    Attributes:
        name: of its package.
        wanted: the versions that ftkit was tested with and is made for, such as `<2.14,>=2.13`.
        installed: the version that is there; None: none is.
    """

    name: str
    wanted: str
    installed: str | None

    @property
    def is_met(self) -> bool:
        """Whether a version that is wanted is installed."""
        return self.installed is not None and SpecifierSet(self.wanted).contains(self.installed, prereleases=True)


def check_versions() -> None:
    """Refuse libraries of versions that ftkit was not made for; it uses names of theirs that change between versions.

    A library that is missing is told where it is used.

    Raises:
        DependencyError: naming each library, what is there and what is needed.
    """
    wrong = [one for one in requirements() if one.installed is not None and not one.is_met]
    if wrong:
        found = "; ".join(
            f"{one.name} {one.installed} is installed, and ftkit needs {one.name}{one.wanted}" for one in wrong
        )
        raise DependencyError(f"{found}: pip install --upgrade ftkit brings what it needs")


def requirements() -> list[Needed]:
    """Return what ftkit needs, without its extras; nothing where it runs from a checkout that is not installed."""
    return [_looked_up(line) for line in _own_requirements() if not _EXTRA.search(str(line.marker))]


def extras() -> dict[str, list[Needed]]:
    """Return what each optional extra of ftkit needs, by its name; nothing for a checkout that is not installed."""
    found: dict[str, list[Needed]] = {}
    for line in _own_requirements():
        names = _EXTRA.findall(str(line.marker))
        for name in names:
            found.setdefault(name, []).append(_looked_up(line))
    return found


def _own_requirements() -> list[Requirement]:
    try:
        return [Requirement(line) for line in metadata.requires("ftkit") or []]
    except metadata.PackageNotFoundError:
        return []


def _looked_up(line: Requirement) -> Needed:
    try:
        there: str | None = metadata.version(line.name)
    except metadata.PackageNotFoundError:
        there = None
    return Needed(line.name, str(line.specifier), there)


def device_name(device: "torch.device") -> str:
    """Return what computes, such as `NVIDIA T4` or `cpu`."""
    import torch

    if device.type == "cpu":
        return "cpu"
    name = getattr(torch.get_device_module(device), "get_device_name", None)  # MPS has none
    return str(name(device)) if name else device.type
