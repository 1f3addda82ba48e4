"""The stacks whose published peaks are held against traces of what they did, one file for each.

A stack's file has

- `GROUPS`: prefixes of the `group` of the rows that are its own,
- `REQUIREMENTS`: exact pins of the versions that were measured; `truth.py setup` installs them beside this project's
  torch, without their dependencies, so those that are needed are named too,
- `reason_not_traced(row)`: why a row cannot be reproduced, or None,
- `trace_row(row)`: the tape of what the stack did, or its births and deaths on several streams,

and may have `HIDDEN`, names of packages that its old versions must not find. It imports its libraries inside functions:
whoever asks for its groups and reasons need not have them.
"""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / "runs" / "truth"
"""Where `truth.py setup` puts each stack's versions."""


def names() -> list[str]:
    """Return the names of the stacks."""
    return [one.name for one in pkgutil.iter_modules(__path__) if hasattr(load(one.name), "GROUPS")]


def load(name: str) -> ModuleType:
    """Return the file of a stack."""
    return importlib.import_module(f"{__name__}.{name}")


def run_child(script: str, name: str, rows: Sequence[Row], results: Path) -> bool:
    """Run a script's `child NAME RESULTS` over rows, in a process that finds the versions of a stack first.

    Returns:
        Whether it succeeded.
    """
    if name in names() and load(name).REQUIREMENTS and not (INSTALLED / name).is_dir():
        sys.exit(f"the versions of {name} are not installed; first: python benchmarks/truth.py setup")
    paths = [str(INSTALLED / name), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", script, "child", name, str(results)]
    text = "\n".join(map(json.dumps, rows))
    return subprocess.run(command, input=text, text=True, env=environment, check=False).returncode == 0


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


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced here, or None."""
    name = stack_of(row)
    if name is None:
        return "what this stack does is not written down in benchmarks/stacks"
    reason: str | None = load(name).reason_not_traced(row)
    return reason
