"""The cache of hidden states as files: what is in it, whether it is sound, and what goes when it is full.

    trunk/3f0c.../entry.json                     what it is; written last, so an entry without it is unfinished
    trunk/3f0c.../00000-<sha256>.safetensors     hidden states of some sequences; its name vouches for its content
    trunk/3f0c....lock                           held by the run that writes the entry

An entry is used by opening all its shards at once, and an open file outlives its name, so an entry may be removed at
any moment that nobody writes it.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ftkit.errors import ConfigError, DeviceError
from ftkit.machine.disk import CACHE_VARIABLE, UNFINISHED, cache_folder, existing_folder, replace_text
from ftkit.machine.lock import if_free
from ftkit.machine.sealed import SUFFIX, find_sealed, is_sound, seal
from ftkit.units import format_bytes

ENTRY = "entry.json"
ELSEWHERE = f"set {CACHE_VARIABLE} to a folder on another disk, or leave the cache out with --trunk-cache off"
_DIGITS = 5


@dataclass(frozen=True)
class About:
    """What an entry says of itself.

    Attributes:
        model: whose trunk.
        split: of which split of which dataset.
        entry: the module that is given the hidden states.
        dtype: of the hidden states.
        num_sequences: in it.
        num_rows: vectors in it.
        num_bytes: of all shards.
    """

    model: str
    split: str
    entry: str
    dtype: str
    num_sequences: int
    num_rows: int
    num_bytes: int


@dataclass(frozen=True)
class Found:
    """An entry of the cache.

    Attributes:
        path: its folder.
        about: what it says of itself; None: it is unfinished.
        num_bytes: that it takes.
        used: when it was last used, in seconds since 1970.
    """

    path: Path
    about: About | None
    num_bytes: int
    used: float


def folder() -> Path:
    """Return the folder of the cache."""
    return cache_folder() / "trunk"


def list_entries() -> list[Found]:
    """Return the entries of the cache, the least recently used first."""
    return sorted(map(_look, _folders()), key=lambda found: found.used)


def find_entry(name: str) -> Path:
    """Return the folder of an entry.

    Args:
        name: the first letters of its name.

    Raises:
        ConfigError: there is none, or more than one.
    """
    paths = [path for path in _folders() if path.name.startswith(name)]
    if len(paths) != 1:
        which = "no entry begins" if not paths else f"{len(paths)} entries begin"
        raise ConfigError(f"{which} with {name!r} in {folder()}; `ftkit cache list` shows them")
    return paths[0]


def damaged_shards(path: Path) -> list[Path]:
    """Return the shards of an entry whose content is not what was written."""
    return [shard for shard in sorted(path.glob(f"*{SUFFIX}")) if not is_sound(shard)]


def remove_entry(path: Path) -> bool:
    """Remove an entry, unless a run is writing it; return whether it is gone."""
    with if_free(path) as is_free:
        if is_free:
            # Without this file the entry is unfinished, whatever becomes of the rest.
            (path / ENTRY).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
    return is_free


def find_shard(path: Path, number: int) -> Path | None:
    """Return a shard of an entry, None where it has not been written."""
    return find_sealed(path, _stem(number))


def seal_shard(aside: Path, number: int) -> Path:
    """Give a shard that is on the disk, flushed, the name that vouches for it."""
    return seal(aside, _stem(number))


def read_about(path: Path) -> About | None:
    """Return what an entry says of itself; None where it is unfinished or says nothing that can be read."""
    try:
        return About(**json.loads((path / ENTRY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def finish(path: Path, about: About) -> None:
    """Say that all shards of an entry are there."""
    replace_text(path / ENTRY, json.dumps(asdict(about), indent=2))


def clear_unfinished(path: Path) -> None:
    """Remove what a run that was killed left half written of an entry; whoever calls holds its lock."""
    for file in path.glob(f"*{UNFINISHED}"):
        file.unlink(missing_ok=True)


def touch(paths: Iterable[Path]) -> None:
    """Count entries as used now."""
    for path in paths:
        os.utime(path / ENTRY)


def make_room(num_bytes: int, limit: int, keep: Sequence[Path]) -> list[Path]:
    """Remove what was not used for longest, until new bytes have room below the limit and on the disk.

    Args:
        num_bytes: that are to be written.
        limit: of the whole cache.
        keep: entries that stay.

    Returns:
        What was removed.

    Raises:
        DeviceError: there is not so much room, whatever is removed.
    """
    entries, removed = list_entries(), []
    held = sum(found.num_bytes for found in entries)
    free = shutil.disk_usage(existing_folder(folder())).free
    for found in entries:
        if (held + num_bytes <= limit and num_bytes < free) or num_bytes > limit:
            break
        if found.path not in keep and remove_entry(found.path):
            removed.append(found.path)
            held, free = held - found.num_bytes, free + found.num_bytes
    if held + num_bytes > limit:
        raise DeviceError(
            f"the hidden states take {format_bytes(num_bytes)} beside {format_bytes(held)} that stay, and cache.limit "
            f"is {format_bytes(limit)}; raise --cache-limit, or leave the cache out with --trunk-cache off"
        )
    if num_bytes >= free:
        raise DeviceError(
            f"the hidden states take {format_bytes(num_bytes)}, and the disk of {folder()} has {format_bytes(free)} "
            f"free; {ELSEWHERE}"
        )
    return removed


def _stem(number: int) -> str:
    return f"{number:0{_DIGITS}d}"


def _folders() -> Iterator[Path]:
    return (path for path in folder().glob("*") if path.is_dir())


def _look(path: Path) -> Found:
    about = read_about(path)
    held = sum(file.stat().st_size for file in path.iterdir())
    return Found(path, about, held, (path if about is None else path / ENTRY).stat().st_mtime)
