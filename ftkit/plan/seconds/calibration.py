"""The rates of this machine as `ftkit doctor --calibrate` has measured them: a file in the cache, read by plans."""

import functools
import json
import math
import platform
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftkit.machine.disk import cache_folder, replace_text
from ftkit.machine.versions import versions
from ftkit.plan.seconds.reach import MEASURED, WHOLE
from ftkit.plan.seconds.speed import Device
from ftkit.plan.seconds.timed import Timed
from ftkit.step.observer import Phase

_CPUINFO = Path("/proc/cpuinfo")
LAYOUT = 10
"""Of the files; another one is not read."""
CALIBRATIONS = "calibration"
"""The folder of the files, in the cache."""
DeviceKey = int | str
"""A device: this machine's processor by the threads of one rank, a GPU by the name that its driver gives it."""


@dataclass(frozen=True)
class Calibration:
    """The figures of a machine that was measured.

    Attributes:
        date: the day, such as 2026-11-26.
        machine: what the figures hold for, as `fingerprint` names it.
        device: the speed of one rank.
        disk_read, disk_write: bytes per second of the disk that the cache lies on.
        link: bytes per second from pinned memory of the host to a GPU; None for a processor.
    """

    date: str
    machine: dict[str, str]
    device: Device
    disk_read: float
    disk_write: float
    link: float | None = None


@dataclass(frozen=True)
class Found:
    """The calibration of this machine, or the reason why an old one does not hold.

    Attributes:
        calibration: None where there is none that holds.
        stale: why the one that is there does not hold; None where it does, or where there is none.
    """

    calibration: Calibration | None
    stale: str | None = None


def fingerprint(device: DeviceKey) -> dict[str, str]:
    """Return what the figures of a device depend on.

    Args:
        device: what was measured.
    """
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if _CPUINFO.is_file() else []
    there = versions()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        **({"device": device} if isinstance(device, str) else {"threads": str(device)}),
        "torch": there["torch"],
        "ftkit": there.get("ftkit", "a checkout"),
    }


def calibration_file(device: DeviceKey) -> Path:
    """Return the file of a device."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()) if isinstance(device, str) else f"cpu-{device}"
    return cache_folder() / CALIBRATIONS / f"{name}.json"


def find_calibration(device: DeviceKey) -> Found:
    """Return the calibration of a device of this machine, if one holds.

    Args:
        device: what may have been measured.
    """
    file = calibration_file(device)
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        return Found(None)
    return _read(file, changed, device)


@functools.lru_cache(maxsize=4)
def _read(file: Path, changed: int, device: DeviceKey) -> Found:  # noqa: ARG001  # a file that has changed is read anew
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        found = _from_tree(tree)
    except (OSError, ValueError, KeyError, TypeError):  # of another layout, or cut short
        return Found(None, f"{file} cannot be read")
    now = fingerprint(device)
    other = [f"{name} {found.machine.get(name)}, now {value}" for name, value in now.items()
             if found.machine.get(name) != value]  # fmt: skip
    return Found(None, f"measured on {found.date} with {'; '.join(other)}") if other else Found(found)


def keep(calibration: Calibration) -> Path:
    """Write a calibration into the cache, over the last one of the same device; returns the file.

    Raises:
        OSError: the cache cannot be written.
    """
    machine = calibration.machine
    file = calibration_file(machine["device"] if "device" in machine else int(machine["threads"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(_as_tree(calibration)))
    return file


def source_words(date: str) -> str:
    """Return where the figures are from, as plans say it."""
    return f"measured on this machine on {date}"


def rates_of(device: Device) -> dict[str, Any]:
    """Return the figures of a device as a file has them."""
    return {
        "rates": [device.fp32_flops, device.half_flops, device.bandwidth, device.host_seconds, device.fresh_rate],
        "compile": device.compile_seconds,
        "hook": device.hook_seconds,
        "hosts": device.hosts,
        "asked": device.asked,
        "unaligned": device.reach.unaligned,
        "slower": [[*operator, rate] for operator, rate in device.rates.items()],
        "operators": [
            [*operator, one.flops, one.moved, one.seconds] for operator, found in device.timed.items() for one in found
        ],
    }


def from_rates(tree: Mapping[str, Any], source: str, link: float | None = None) -> Device:
    """Return the device whose figures a file has.

    Args:
        tree: that `rates_of` returned, maybe with more.
        source: where they are from, in words.
        link: bytes per second from the host to a GPU; None for a processor.

    Raises:
        ValueError, KeyError, TypeError: the file is not whole.
    """
    timed: dict[tuple[str, str], list[Timed]] = defaultdict(list)
    for name, dtype, flops, moved, seconds in tree["operators"]:
        timed[name, dtype].append(Timed(flops, moved, seconds))
    fp32, half, bandwidth, host, fresh = tree["rates"]
    return Device(
        fp32,
        half,
        bandwidth,
        host,
        link is not None,
        {(name, dtype): rate for name, dtype, rate in tree["slower"]},
        timed=dict(timed),
        source=source,
        host_rate=math.inf if link is None else link,
        reach=replace(WHOLE if link is None else MEASURED, unaligned=tree["unaligned"]),
        fresh_rate=fresh,
        compile_seconds=tree["compile"],
        hook_seconds=tree["hook"],
        hosts={Phase(phase): seconds for phase, seconds in tree["hosts"].items()},
        asked=tree["asked"],
    )


def _as_tree(calibration: Calibration) -> dict[str, Any]:
    return {
        "layout": LAYOUT,
        "date": calibration.date,
        "machine": calibration.machine,
        "disk": [calibration.disk_read, calibration.disk_write],
        "link": calibration.link,
        **rates_of(calibration.device),
    }


def _from_tree(tree: dict[str, Any]) -> Calibration:
    if tree["layout"] != LAYOUT:
        raise ValueError(f"layout {tree['layout']}")
    date, link = tree["date"], tree["link"]
    read, written = tree["disk"]
    device = from_rates(tree, source_words(date), link)
    return Calibration(date, dict(tree["machine"]), device, read, written, link)
