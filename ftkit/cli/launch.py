"""Start one process for each device, as torchrun does, and start them again when one is lost."""

import os
import signal
import sys
from typing import NoReturn

import click

from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError

_OWN = ("--num-devices", "--restarts")
"""Flags of the launch itself, each with a value; the processes do not get them."""


class NumDevices(click.ParamType[int]):
    """A number of devices, or `auto` for all that this machine has."""

    name = "N|auto"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if value == "auto":
            import torch

            return max(1, torch.accelerator.device_count())
        text = str(value)
        if not text.isdigit() or int(text) < 1:
            self.fail(f"{text!r} is not a number of devices; write 1 or more, or auto", param, ctx)
        return int(text)


def launch(config: RunConfig, num_devices: int, restarts: int) -> NoReturn:
    """Become torchrun with the command that this process was started with.

    Args:
        config: the run, which says whether DeepSpeed may be chosen.
        num_devices: processes on this machine.
        restarts: how often all processes are started again after one of them was lost; they go on from the last
            checkpoint.

    Raises:
        ConfigError: a restart would not know where the run is.
    """
    if restarts and config.output.folder is None:
        raise ConfigError("--restarts needs --output, the folder where a restarted run finds its checkpoints")
    arguments = _without_own(sys.argv[1:])
    arguments = arguments[arguments.index("train") + 1 :] if "train" in arguments[:1] else arguments
    if restarts:
        arguments += ["--set", "output.resume=auto"]
    if num_devices > 1 and config.engine.name == "auto" and config.engine.zero_stage != 0:
        arguments += ["--engine", "deepspeed"]  # as under its launcher, and as `ftkit plan --gpus` expects
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // num_devices)))
    command = [
        sys.executable, "-m", "ftkit.cli.launch", "--standalone", f"--nproc-per-node={num_devices}",
        f"--max-restarts={restarts}", "-m", "ftkit", "train", *arguments,
    ]  # fmt: skip
    os.execv(sys.executable, command)


def _without_own(arguments: list[str]) -> list[str]:
    """Return a command line without the flags of the launch."""
    kept: list[str] = []
    skips = False
    for argument in arguments:
        if skips:
            skips = False
        elif argument in _OWN:
            skips = True
        elif not argument.startswith(tuple(f"{flag}=" for flag in _OWN)):
            kept.append(argument)
    return kept


def as_torchrun() -> None:
    """Start the processes that torchrun's arguments ask for, and exit as they do, in a sentence where torchrun traces.

    Exits with 128 and the number of the signal that has stopped it, as a shell tells it; else with the code of the
    process that failed first, which has said why. That of one that was killed is 128 and the signal's number too.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(sys.argv[1:])
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode > 0:
            sys.exit(first.exitcode)
        ended_by = signal.Signals(-first.exitcode)
        click.echo(f"error: process {rank} was ended by {ended_by.name}, and the others with it", err=True)
        sys.exit(128 + ended_by)


if __name__ == "__main__":
    as_torchrun()
