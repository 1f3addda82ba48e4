"""A run in a process that kills itself, as `kill -9` does, at a moment that a test chooses."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ftkit.config.files import load_config
from ftkit.data.batching import collate
from ftkit.errors import FtkitError
from ftkit.machine.process import ProcessContext
from ftkit.training import evaluate, loop
from ftkit.training.checkpoints import checkpoint
from ftkit.training.loop import train_run
from ftkit.training.reporters import Reporters
from ftkit.training.steps import take_step

OF_EVERY_RANK = ("step", "evaluation")
MOMENTS = (*OF_EVERY_RANK, "save", "before a rename", "after a rename")
"""The later ones are of the first rank, which alone writes."""


def ended(processes: ForkServerContext, function: Callable[..., None], *arguments: Any) -> int | None:
    """Run a function in a process of its own; returns the process's exit code."""
    return ranks_ended(processes, [partial(function, *arguments)])[0]


def ranks_ended(processes: ForkServerContext, ranks: list[partial[None]]) -> list[int | None]:
    """Run a function for each rank of a job, in a process of its own; returns the processes' exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        processes.Process(target=_as_rank, args=(rank, len(ranks), port, function))
        for rank, function in enumerate(ranks)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
    return [process.exitcode for process in started]


def _as_rank(rank: int, world_size: int, port: int, function: Callable[[], None]) -> None:
    """Run a function as a rank that a launcher started; an error for the user is the exit code that it has."""
    if world_size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    try:
        function()
    except FtkitError as error:
        sys.exit(error.exit_code)


def train(settings: list[str], resume: bool = False) -> None:
    """Train in this process, as far as it comes."""
    train_run(load_config(settings=settings), ProcessContext.from_environment(), Reporters(), resume=resume)


def train_and_die(settings: list[str], moment: str, call: int, resume: bool) -> None:
    """Train, and be killed at one of the calls that a moment is made of; the run may end before it."""
    if moment == "step":
        loop.take_step = _deadly(take_step, call)  # type: ignore[attr-defined]
    if moment == "evaluation":
        evaluate.collate = _deadly(collate, call)  # type: ignore[attr-defined]
    if moment == "save":
        checkpoint.save_file = _deadly(save_file, call, last_words=_leave_half)  # type: ignore[attr-defined]
    if "rename" in moment:
        is_after = moment.startswith("after")
        Path.rename = _deadly(Path.rename, call, is_after=is_after)  # type: ignore[method-assign]
    train(settings, resume)


def _deadly(
    function: Callable[..., Any], call: int, *, is_after: bool = False, last_words: Callable[..., None] | None = None
) -> Callable[..., Any]:
    """Return a function that kills its process at one of its calls."""
    calls = []

    def called(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call and is_after:
            function(*arguments, **options)
        if len(calls) == call:
            if last_words is not None:
                last_words(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return called


def _leave_half(tensors: dict[str, Any], path: Path) -> None:
    """Leave the first half of a file, as a write that was cut short does."""
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
