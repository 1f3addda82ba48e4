"""Can runs and caches be written, how fast, is the launchers' port free, and is there a hub?"""

import os
import shutil
import socket
from pathlib import Path

from ftkit.machine import hub
from ftkit.machine.disk import cache_folder, existing_folder, is_full, write_rate
from ftkit.machine.doctor.finding import Finding, missing, ok, problem
from ftkit.units import counted, format_bytes

_TRIAL_BYTES = 2**25
_LEAST_FREE = 2 * 2**30
"""Checkpoints of a small model, its safetensors and a cache of hidden states."""
_PORT = 29500
"""MASTER_PORT where nothing else is said (deepspeed 0.19, constants.py; torch 2.13, distributed/run.py)."""


def look_at_places(output: Path, *, online: bool) -> list[Finding]:
    """Return what is found of disks, port and hub.

    Args:
        output: the folder that runs would be written to.
        online: whether the hub may be asked.
    """
    return [_disk("output", output, is_blocking=True), _disk("cache", cache_folder()), _port(), _hub(online=online)]


def _disk(name: str, folder: Path, *, is_blocking: bool = False) -> Finding:
    """Write a file of 32 MiB below the nearest folder that is there, and remove it."""
    flag = "--output" if is_blocking else "FTKIT_CACHE"
    cure = f"free some space, or name another disk with {flag}"
    try:
        there = existing_folder(folder)
        rate = write_rate(there, _TRIAL_BYTES)
    except OSError as error:
        # Space would help a full disk alone, not a file in the folder's place or a right that is missing.
        told = cure if is_full(error) else f"name a folder that you can make and write with {flag}"
        return problem(name, f"{folder} cannot be written: {error.strerror}", told, is_blocking=is_blocking)
    free = shutil.disk_usage(there).free
    fact = f"{folder}: {format_bytes(free)} free, written at {format_bytes(rate)}/s"
    return problem(name, fact, cure) if free < _LEAST_FREE else ok(name, fact)


def _port() -> Finding:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a job that has just ended would count
        try:
            trial.bind(("127.0.0.1", _PORT))
        except OSError as error:
            cure = f"deepspeed --master_port {_PORT + 1} or torchrun --master-port {_PORT + 1}; another job has it"
            return problem("port", f"{_PORT}, the launchers' own, is not free: {error.strerror}", cure)
    return ok("port", f"{_PORT}, the launchers' own, is free")


def _hub(*, online: bool) -> Finding:
    folder = hub.hub_cache()
    count = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    cache = f"{counted(count, 'model')} in its cache {folder}"
    if os.environ.get("HF_HUB_OFFLINE"):
        return ok("hub", f"not asked, since HF_HUB_OFFLINE is set; {cache}")
    if not online:
        return ok("hub", f"not asked (--online asks it); {cache}")
    if hub.answers():
        return ok("hub", f"answers; {cache}")
    cure = (
        "name models and data by folders and files, or set HF_ENDPOINT or HTTPS_PROXY to where the hub can be reached"
    )
    return missing("hub", f"does not answer; {cache}", cure)
