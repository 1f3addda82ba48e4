"""The public function that trains, and what it shares with the command `ftkit train`."""

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ftkit.config.files import Configuration, as_config
from ftkit.config.tree import RunConfig
from ftkit.machine.environment import prepare_environment
from ftkit.machine.memory import quiet_collector
from ftkit.machine.process import ProcessContext
from ftkit.records.files import read_record
from ftkit.records.schema import RunRecord

if TYPE_CHECKING:
    from ftkit.training.reporters import Reporter


def train(config: Configuration, *, reporter: "Reporter | None" = None, resume: bool = False) -> RunRecord:
    """Train as a configuration says, score, and leave a result folder, as the command `ftkit train` does.

    Under a launcher (deepspeed, torchrun) every process calls it.

    Args:
        config: the run: what `ftkit.load_config` returns, a tree of plain values, or a YAML file.
        reporter: told what happens, on the first rank; None: nobody is.
        resume: go on from the last checkpoint in `output.folder` of the configuration.

    Returns:
        Everything that was measured, on the first rank; on the others, how the run ended.

    Raises:
        FtkitError: naming what was given, what was wanted and what to try.
    """
    run = as_config(config)
    prepare_environment(run)
    return train_and_track(run, ProcessContext.from_environment(), reporter, resume=resume)


def train_and_track(
    config: RunConfig, process: ProcessContext, reporter: "Reporter | None", *, resume: bool
) -> RunRecord:
    """Train, and tell the trackers of `config.output.trackers` besides the reporter.

    Args:
        config: the run.
        process: the place of this process.
        reporter: told what happens, on the first rank; None: the trackers alone are.
        resume: go on from the last checkpoint.

    Returns:
        As `train`.

    Raises:
        FtkitError: as `train`.
    """
    with quiet_collector(trusts=True):  # what is imported stays
        from ftkit.training.loop import train_run
        from ftkit.training.recovery.restart import Start, begin
        from ftkit.training.reporters import Reporters

    if config.output.resume == "auto" and not resume:
        config, start = begin(config)
        if start is Start.FINISHED:
            if reporter is not None and process.is_main:
                reporter.note(f"the run in {config.output.folder} is finished; `ftkit report` shows it")
            return read_record(str(config.output.folder))
        resume = start is Start.GOES_ON
    told = () if reporter is None else (reporter,)
    with closing(Reporters(*told, *_trackers(config))) as reporters:
        return train_run(config, process, reporters, resume=resume)


def _trackers(config: RunConfig) -> Iterator[Any]:
    """Yield the reporter that tells the trackers, if there are any."""
    if config.output.trackers:
        from ftkit.training.trackers import TrackerReporter

        yield TrackerReporter(config.output.trackers)
