"""A training of a search, in a process that has imported what it needs before it begins."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

_IMPORTED = ["ftkit.cli.train", "ftkit.cli.report", "ftkit.training.loop", "transformers.modeling_utils"]
"""What all trainings import, which takes as long as all else in one that is short."""


def start_trial(file: Path, output: Path) -> BaseProcess:
    """Run `ftkit train --config FILE`, as a copy of a process that has imported its modules and done nothing else.

    This process would not do in the place of that: it has planned, and a copy has none of the threads of the libraries
    that have worked here.

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
    from ftkit.cli import main

    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    main(["train", "--config", str(file)], prog_name="ftkit")


def _end_with_parent() -> None:
    """Stop this training, as a signal does, when the search that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
