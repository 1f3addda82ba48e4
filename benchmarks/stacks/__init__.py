"""The stacks whose published figures are compared with traces of what they did, one file for each.

A stack's file has

- `GROUPS`: prefixes of the `group` of the rows that are its own,
- `FACTS`: what it traces of each fact of a row (`facts`),
- `REQUIREMENTS`: exact pins of the versions that were measured; `published.py setup` installs them beside this
  project's torch, without their dependencies, so those that are needed are named too,
- `reason_not_traced(row)`: why a row cannot be reproduced, or None,
- `trace_row(row)`: the tape of what the stack did, or its births and deaths on several streams,

and may have `HIDDEN`, names of packages that its old versions must not find, `open_fact(row)`, which fact that decides
a row's peak is not published though the row is traced, and `requirements(row)`, pins of the versions that a row names,
in the place of `REQUIREMENTS`. Who traces a row is a stack with such pins, a judge, written
`hf_any transformers==5.8.1,peft==0.19.1`.

It imports its libraries inside functions:
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
from typing import Any

from benchmarks.rows import Row
from benchmarks.stacks import facts, versions

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / "runs" / "truth"
"""Where `install` puts each stack's versions."""


def names() -> list[str]:
    """Return the names of the stacks."""
    return [one.name for one in pkgutil.iter_modules(__path__) if hasattr(load(one.name), "GROUPS")]


def load(name: str) -> ModuleType:
    """Return the file of a stack."""
    return importlib.import_module(f"{__name__}.{name}")


def stack_name(judge: str) -> str:
    """Return the stack of a judge."""
    return judge.partition(" ")[0]


def pins(judge: str) -> tuple[str, ...]:
    """Return exact pins of all that a judge's process must find, empty if those are this project's versions."""
    name, _, named = judge.partition(" ")
    return versions.complete(tuple(named.split(","))) if named else load(name).REQUIREMENTS


def folder(judge: str) -> Path:
    """Return where a judge's versions are installed; stacks on the same versions share them."""
    return INSTALLED / (judge.partition(" ")[2] or judge)


def install(judges: Sequence[str]) -> None:
    """Install the versions of judges, each into a folder of its own."""
    for target, wanted in {folder(judge): pins(judge) for judge in judges}.items():
        if wanted:
            shutil.rmtree(target, ignore_errors=True)  # pip would leave the metadata of another version beside it
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]
            subprocess.run([*command, str(target), *wanted], check=True)
            print(f"{target.name}: {', '.join(wanted)}")


def versions_of(judge: str) -> dict[str, str]:
    """Return the versions of a judge that this process finds."""
    return {package: metadata.version(package) for package in versions.pinned(pins(judge))}


def enter(judge: str) -> ModuleType:
    """Return the file of a stack, in the process that traces it: what it must not find is hidden from here on."""
    stack = load(stack_name(judge))
    for hidden in getattr(stack, "HIDDEN", ()):
        sys.modules[hidden] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    return stack


def stack_of(row: Row) -> str | None:
    """Return the name of the stack that a row is of: that with the longest prefix of its group; None: of none."""
    found = [(len(prefix), name) for name in names() for prefix in load(name).GROUPS if row["group"].startswith(prefix)]
    return max(found)[1] if found else None


def judge_of(row: Row) -> str:
    """Return who traces a row: its stack, with the versions that the row names where the stack reads these."""
    name = str(stack_of(row))
    own: Any = getattr(load(name), "requirements", None)
    named = own(row) if own else ()
    return f"{name} {','.join(named)}" if named else name


def tracers(row: Row) -> list[str]:
    """Return who can trace a row, or nothing."""
    return [] if reason_not_traced(row) else [judge_of(row)]


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced here, or None."""
    name = stack_of(row)
    if name is None:
        return "what this stack does is not written down in benchmarks/stacks"
    reason: str | None = load(name).reason_not_traced(row)
    return reason or facts.reason_incomplete(row) or versions.reason_of_others(row, load(name).REQUIREMENTS)


def open_fact(row: Row) -> str | None:
    """Return which fact that decides a row's peak nobody has published, or None."""
    asked: Any = getattr(load(str(stack_of(row))), "open_fact", None)
    reason: str | None = asked(row) if asked else None
    return reason
