"""What was seen of this machine beside calibrations: files in the cache that hold for its processor and libraries."""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from ftkit.machine.disk import cache_folder, replace_text
from ftkit.plan.seconds.calibration import CALIBRATIONS, LAYOUT, fingerprint

T = TypeVar("T")


def kept_file(name: str) -> Path:
    """Return the file of a name."""
    return cache_folder() / CALIBRATIONS / f"{name}.json"


def kept_files(pattern: str) -> list[Path]:
    """Return the files that are there, of a pattern of names, in their order."""
    return sorted(kept_file(pattern).parent.glob(kept_file(pattern).name))


def find_kept(file: Path, num_threads: int, make: Callable[[Mapping[str, Any]], T]) -> T | None:
    """Return what a file keeps, if it is there and still holds.

    Args:
        file: as `kept_file` names it.
        num_threads: of one rank.
        make: makes it of the tree that was kept.
    """
    try:
        return cast(T | None, _read(file, file.stat().st_mtime_ns, num_threads, make))
    except OSError:
        return None


def keep_tree(file: Path, num_threads: int, tree: Mapping[str, Any]) -> None:
    """Write what was seen; on a disk that is full or read-only it is not kept, and will be looked for again.

    Args:
        file: as `kept_file` names it.
        num_threads: of one rank.
        tree: what `find_kept` hands to its `make`.
    """
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps({"layout": LAYOUT, "machine": fingerprint(num_threads), **tree}))


@functools.lru_cache(maxsize=32)
def _read(
    file: Path,
    changed: int,  # noqa: ARG001  # a file that changed is read anew
    num_threads: int,
    make: Callable[[Mapping[str, Any]], Any],
) -> Any:
    try:
        tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        holds = tree["layout"] == LAYOUT and tree["machine"] == fingerprint(num_threads)
        return make(tree) if holds else None
    except (ValueError, LookupError, TypeError):  # cut short
        return None
