"""Begin a run again from its first weights, where an update failed before the first checkpoint."""

from ftkit.machine.process import first_decides
from ftkit.records.files import CHECKPOINTS
from ftkit.training.checkpoints.checkpoint import list_checkpoints
from ftkit.training.setup import Job
from ftkit.training.state import Progress

_MOST_TRAINABLE = 2**24
"""Trained numbers above which their first values are not kept: 64 MiB on the host."""


class Beginning:
    """The weights that train as they were before step 1, in host memory; of a large model none are kept."""

    def __init__(self, job: Job, progress: Progress) -> None:
        """Keep them where the run is about to take step 1; called by every rank, since masters may be partitioned.

        Args:
            job: the run.
            progress: where it stands.
        """
        self._job = job
        is_kept = progress.step == 0 and job.counts.trainable <= _MOST_TRAINABLE
        self._weights = job.engine.trainable_state() if is_kept else None

    def again(self, progress: Progress) -> bool:
        """Return to the start; moments and loss scale begin anew.

        Args:
            progress: where the run stands; changed to where it began.

        Returns:
            Whether it was done: not where there is a checkpoint, or where no weights were kept.
        """
        if first_decides(self._job.process, self._has_checkpoint) or self._weights is None:
            return False
        engine = self._job.engine
        engine.discard_gradients()
        engine.load_trainable_state(self._weights)
        engine.reset_optimizer()
        vars(progress).update(vars(Progress(progress.started, progress.earlier_seconds)))
        return True

    def _has_checkpoint(self) -> bool:
        self._job.writer.wait()  # one may be on its way
        return bool(list_checkpoints(self._job.folder / CHECKPOINTS))
