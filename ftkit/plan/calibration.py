"""The rates of this machine as `ftkit doctor --calibrate` has measured them: a file in the cache, read by plans."""

import functools
import json
import platform
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.machine.disk import cache_folder, replace_text
from ftkit.machine.versions import versions
from ftkit.plan.speed import Device, Timed

_CPUINFO = Path("/proc/cpuinfo")
_LAYOUT = 1
"""Of the file; another one is not read."""


@dataclass(frozen=True)
class Calibration:
    """The figures of a machine that was measured.

    Attributes:
        date: the day, such as 2026-11-26.
        machine: what the figures hold for, as `fingerprint` names it.
        device: the speed of one rank.
        disk_read, disk_write: bytes per second of the disk that the cache lies on.
    """

    date: str
    machine: dict[str, str]
    device: Device
    disk_read: float
    disk_write: float


@dataclass(frozen=True)
class Found:
    """The calibration of this machine, or the reason why an old one does not hold.

    Attributes:
        calibration: None where there is none that holds.
        stale: why the one that is there does not hold; None where it does, or where there is none.
    """

    calibration: Calibration | None
    stale: str | None = None


def fingerprint(num_threads: int) -> dict[str, str]:
    """Return what the figures depend on.

    Args:
        num_threads: of one rank.
    """
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if _CPUINFO.is_file() else []
    there = versions()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": str(num_threads),
        "torch": there["torch"],
        "ftkit": there.get("ftkit", "a checkout"),
    }


def calibration_file(num_threads: int) -> Path:
    """Return the file of a number of threads."""
    return cache_folder() / "calibration" / f"cpu-{num_threads}.json"


def find_calibration(num_threads: int) -> Found:
    """Return the calibration of this machine, if one holds.

    Args:
        num_threads: of one rank.
    """
    file = calibration_file(num_threads)
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        return Found(None)
    return _read(file, changed, num_threads)


@functools.lru_cache(maxsize=4)
def _read(file: Path, changed: int, num_threads: int) -> Found:  # noqa: ARG001  # a file that has changed is read anew
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        found = _from_tree(tree)
    except (OSError, ValueError, KeyError, TypeError):  # of another layout, or cut short
        return Found(None, f"{file} cannot be read")
    now = fingerprint(num_threads)
    other = [f"{name} {found.machine.get(name)}, now {value}" for name, value in now.items()
             if found.machine.get(name) != value]  # fmt: skip
    return Found(None, f"measured on {found.date} with {'; '.join(other)}") if other else Found(found)


def keep(calibration: Calibration) -> Path:
    """Write a calibration into the cache, over the last one of as many threads; returns the file.

    Raises:
        OSError: the cache cannot be written.
    """
    file = calibration_file(int(calibration.machine["threads"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(_as_tree(calibration)))
    return file


def source_words(date: str) -> str:
    """Return where the figures are from, as plans say it."""
    return f"measured on this machine on {date}"


def _as_tree(calibration: Calibration) -> dict[str, Any]:
    device = calibration.device
    return {
        "layout": _LAYOUT,
        "date": calibration.date,
        "machine": calibration.machine,
        "disk": [calibration.disk_read, calibration.disk_write],
        "rates": [device.fp32_flops, device.half_flops, device.bandwidth, device.host_seconds],
        "operators": [
            [*operator, one.flops, one.moved, one.seconds] for operator, found in device.timed.items() for one in found
        ],
    }


def _from_tree(tree: dict[str, Any]) -> Calibration:
    if tree["layout"] != _LAYOUT:
        raise ValueError(f"layout {tree['layout']}")
    timed: dict[tuple[str, str], list[Timed]] = defaultdict(list)
    for name, dtype, flops, moved, seconds in tree["operators"]:
        timed[name, dtype].append(Timed(flops, moved, seconds))
    fp32, half, bandwidth, host = tree["rates"]
    device = Device(fp32, half, bandwidth, host, False, timed=dict(timed), source=source_words(tree["date"]))
    return Calibration(tree["date"], dict(tree["machine"]), device, *tree["disk"])
