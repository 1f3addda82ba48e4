"""A training of a search, in a process that has imported what it needs before it begins."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

import click

from ftkit.machine.lock import locked

_IMPORTED = ["ftkit.cli.train", "ftkit.cli.report", "ftkit.training.loop", "transformers.modeling_utils"]
"""What all trainings import, which takes as long as all else in one that is short."""


def start_trial(file: Path, output: Path) -> BaseProcess:
    """Run `ftkit train --config FILE`, as a copy of a process that has imported its modules and done nothing else.

    A copy of the process that searches would not do: that has planned, and a copy has none of the threads that its
    libraries have started.

    Args:
        file: the configuration.
        output: gets what the training prints, behind what is there.

    Returns:
        The process, which has begun. It ends where this one does, with a checkpoint.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(_IMPORTED)
    process: BaseProcess = context.Process(target=_train, args=(file, output))  # type: ignore[attr-defined]  # every context has it
    process.start()
    return process


def _train(file: Path, output: Path) -> None:
    """Train in this process, once no other trains by this configuration: one whose search was killed saves first."""
    from ftkit.cli import main
    from ftkit.cli.options import user_errors

    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    with user_errors(), locked(file, _say_waiting, "free what is missing"):
        main(["train", "--config", str(file)], prog_name="ftkit")


def _say_waiting(owner: str) -> None:
    click.echo(f"waiting for {owner}, which still trains here")


def _end_with_parent() -> None:
    """Stop this training, as a signal does, when the search that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
