"""The versions of the libraries that a row names, and those that are traced for it."""

import re
from collections.abc import Mapping, Sequence
from importlib import metadata

from benchmarks.rows import Row

HUB = ("huggingface_hub==1.5.0", "httpx==0.28.1", "httpcore==1.0.9", "h11==0.16.0", "anyio==4.9.0")
"""What transformers 5 talks to the hub by; nothing is asked of it here."""
OLD_HUB = "huggingface_hub==0.36.0"
BESIDE = {
    (5, 16): HUB,  # with the tokenizers beside this project
    (5, 0): ("tokenizers==0.22.1", *HUB),
    (4, 56): ("tokenizers==0.22.1", OLD_HUB),
    (4, 47): ("tokenizers==0.21.0", OLD_HUB),
    (4, 45): ("tokenizers==0.20.3", OLD_HUB),
    (4, 40): ("tokenizers==0.19.1", OLD_HUB),
    (4, 37): ("tokenizers==0.15.2", "huggingface_hub==0.21.4"),
}
"""First version of transformers that asks for these beside it (its dependency_versions_table.py)."""
OLDEST = min(BESIDE)


def named(row: Row, package: str) -> str | None:
    """Return the version of a package that a row names, such as 5.8.1; None: it names none."""
    text = row.get("framework_version") or ""
    found = re.search(rf"\b{package}[ =]+v?(\d+(?:\.\d+)*)", text)
    if found is None and row.get("framework") == package:
        found = re.match(r"v?(\d+(?:\.\d+)+)", text)
    return found[1] if found else None


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, by which versions are compared."""
    return tuple(map(int, version.split(".")))


def reason_of_others(row: Row, pins: Sequence[str]) -> str | None:
    """Return which version that a row names is not the one that is traced, or None.

    Args:
        row: any; what it says of a version may be short, such as 5.8.
        pins: those that are traced.
    """
    for package, ours in pinned(pins).items():
        theirs = named(row, package)
        if theirs is not None and numbers(theirs) != numbers(ours)[: theirs.count(".") + 1]:
            return f"it ran {package} {theirs}, and {ours} would be traced"
    return None


def pinned(pins: Sequence[str]) -> Mapping[str, str]:
    """Return package to version of exact pins."""
    return {name: version for name, _, version in (pin.partition("==") for pin in pins)}


def to_install(row: Row, packages: Sequence[str]) -> tuple[str, ...]:
    """Return pins of the packages that a row names in another version than the one beside this project.

    Args:
        row: any.
        packages: those that its trace runs.
    """
    found = {package: named(row, package) for package in packages}
    return tuple(f"{name}=={one}" for name, one in found.items() if one and one != metadata.version(name))


def complete(pins: Sequence[str]) -> tuple[str, ...]:
    """Return pins with what their transformers asks for beside it.

    Raises:
        LookupError: it is older than all that are known.
    """
    ours = pinned(pins).get("transformers")
    if ours is None:
        return tuple(pins)
    fitting = [first for first in BESIDE if first <= numbers(ours)]
    if not fitting:
        raise LookupError(f"transformers {ours} is older than {'.'.join(map(str, OLDEST))}")
    return (*pins, *BESIDE[max(fitting)])
