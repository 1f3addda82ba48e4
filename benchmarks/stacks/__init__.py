"""The stacks whose published figures are compared with traces of what they did, one file for each.

A stack's file has

- `GROUPS`: prefixes of the `group` of the rows that are its own,
- `REQUIREMENTS`: exact pins of the versions that were measured; `published.py setup` installs them beside this
  project's torch, without their dependencies, so those that are needed are named too,
- `reason_not_traced(row)`: why a row cannot be reproduced, or None,
- `trace_row(row)`: the tape of what the stack did, or its births and deaths on several streams,

and may have `HIDDEN`, names of packages that its old versions must not find. It imports its libraries inside functions:
whoever asks for its groups and reasons need not have them.
"""

import importlib
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / "runs" / "truth"
"""Where `install` puts each stack's versions."""


def names() -> list[str]:
    """Return the names of the stacks."""
    return [one.name for one in pkgutil.iter_modules(__path__) if hasattr(load(one.name), "GROUPS")]


def load(name: str) -> ModuleType:
    """Return the file of a stack."""
    return importlib.import_module(f"{__name__}.{name}")


def install(chosen: Sequence[str]) -> None:
    """Install the versions of stacks, each into a folder of its own."""
    for name in chosen:
        if pins := load(name).REQUIREMENTS:
            target = INSTALLED / name
            shutil.rmtree(target, ignore_errors=True)  # pip would leave the metadata of another version beside it
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]
            subprocess.run([*command, str(target), *pins], check=True)
            print(f"{name}: {', '.join(pins)}")


def versions(name: str) -> dict[str, str]:
    """Return the versions of a stack that this process finds."""
    packages = [pin.partition("==")[0] for pin in load(name).REQUIREMENTS]
    return {package: metadata.version(package) for package in packages}


def enter(name: str) -> ModuleType:
    """Return the file of a stack, in the process that traces it: what it must not find is hidden from here on."""
    stack = load(name)
    for hidden in getattr(stack, "HIDDEN", ()):
        sys.modules[hidden] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    return stack


def stack_of(row: Row) -> str | None:
    """Return the name of the stack that a row is of: that with the longest prefix of its group; None: of none."""
    found = [(len(prefix), name) for name in names() for prefix in load(name).GROUPS if row["group"].startswith(prefix)]
    return max(found)[1] if found else None


def tracers(row: Row) -> list[str]:
    """Return the stack that can trace a row, or nothing."""
    return [] if reason_not_traced(row) else [str(stack_of(row))]


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced here, or None."""
    name = stack_of(row)
    if name is None:
        return "what this stack does is not written down in benchmarks/stacks"
    reason: str | None = load(name).reason_not_traced(row)
    return reason
