"""Decide whether a command starts a run or goes on with it, from what its result folder holds.

With `output.resume=auto` the same command can be given again and again, as a scheduler does that requeues a job: it
starts the run, goes on with it, or finds it finished.
"""

import warnings
from enum import Enum
from pathlib import Path

from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError, DataError
from ftkit.records.files import CHECKPOINTS, read_record
from ftkit.records.schema import RunRecord
from ftkit.training.checkpoints.checkpoint import list_checkpoints
from ftkit.training.checkpoints.same_run import check_finished, has_another_end


class Start(Enum):
    """What there is to do in a result folder."""

    NEW = "new"
    """Nothing is there, or a run that stopped before its first checkpoint: the run begins."""
    GOES_ON = "goes on"
    """There is a checkpoint, of a run that has not ended, or that is to end elsewhere."""
    FINISHED = "finished"
    """The run has ended where it is to end."""


def begin(config: RunConfig) -> tuple[RunConfig, Start]:
    """Return a run as it is to start in its folder, and how.

    Args:
        config: with `output.resume=auto`.

    Returns:
        The run, which replaces what stopped before its first checkpoint; and what there is to do.

    Raises:
        ConfigError: the run names no folder.
        CheckpointError: the run has ended, and was another one.
    """
    if config.output.folder is None:
        raise ConfigError("output.resume=auto needs output.folder, where the run is found again; give --output FOLDER")
    folder = Path(config.output.folder)
    record = _of_finished(folder)
    if record is None:
        start = Start.GOES_ON if list_checkpoints(folder / CHECKPOINTS) else Start.NEW
    elif has_another_end(config, record):
        start = Start.GOES_ON
    else:
        check_finished(config, record)
        start = Start.FINISHED
    output = config.output.model_copy(update={"overwrite": config.output.overwrite or start is Start.NEW})
    return config.model_copy(update={"output": output}), start


def _of_finished(folder: Path) -> RunRecord | None:
    """Return the record of a run that has ended; None where none has, or the folder is not there yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a line that a kill cut short says nothing about how the run goes on
            record = read_record(folder)
    except DataError:
        return None
    return None if record.result is None else record
