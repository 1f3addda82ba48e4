"""Take a step again, with smaller limits, where memory ran out; and give one up where the run was asked to stop.

A step is undone by dropping its gradients, and the same global batch is cut anew. Ranks agree before the update, which
is the one place where all of them know whether their share of the step fitted:

    one rank, or several under the plain engine   the step is taken again
    several ranks under DeepSpeed                 the others already wait inside a collective, so the run ends, and
                                                  says with which limits to resume
    memory that runs out inside the update        weights may be half updated: the loop goes back to the last checkpoint
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ftkit.engine.protocol import Engine
from ftkit.errors import DoesNotFitError
from ftkit.machine.memory import is_out_of_memory, release_memory
from ftkit.machine.process import largest_of_ranks
from ftkit.models.build import set_checkpointing
from ftkit.records.schema import RecoveryLine
from ftkit.step.observer import Phase
from ftkit.step.step import StepResult
from ftkit.training.recovery.limits import Limits
from ftkit.training.recovery.signals import StopNow, StopRequest

_FINE, _STOP, _NO_MEMORY = range(3)
"""What a rank says before the update; the largest of all is what every rank does."""


class UpdateFailedError(Exception):
    """Memory ran out inside the update, so the weights are not known to be those of any step."""


class _PeerHasNoMemoryError(Exception):
    """Memory ran out on another rank."""


def _keep_nothing(_: Limits) -> None:
    """Keep no limits."""


@dataclass
class Attempts:
    """Takes the steps of a run, each as often as it needs.

    Attributes:
        engine: what trains.
        limits: those of the next step; they only shrink.
        longest: tokens of the longest sequence of the data.
        stop: whether this rank was asked to stop.
        tell: takes what happened.
        keep: takes limits that a resumed run is to begin with.
        stops: whether any rank was asked to, so that all of them stop after this step.
    """

    engine: Engine
    limits: Limits
    longest: int
    stop: StopRequest
    tell: Callable[[RecoveryLine], None]
    stops: bool = False
    keep: Callable[[Limits], None] = _keep_nothing

    def take(self, step: int, attempt: Callable[[Limits], StepResult]) -> StepResult:
        """Take a step until it fits.

        Args:
            step: its number, for the record.
            attempt: cuts the global batch within limits and runs `train_step`, told of its phases by `during`.

        Returns:
            What the step left.

        Raises:
            DoesNotFitError: one sequence with every layer recomputed does not fit, or several ranks cannot undo a step.
            UpdateFailedError: memory ran out inside the update.
            StopNow: the run was asked to stop; the step is undone.
        """
        while True:
            self._has_agreed = False
            try:
                return attempt(self.limits)
            except StopNow:
                self.engine.discard_gradients()
                raise
            except _PeerHasNoMemoryError:
                reason = "memory ran out on another rank"
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:200]
                self._check_undoable(reason)
                largest_of_ranks(self.engine.process, _NO_MEMORY)
            self.shrink(step, reason)  # outside the handlers, whose exception holds the tensors of the failed step

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Agree with the other ranks before the update, and give the step up between two micro-batches if asked to."""
        if phase is Phase.FORWARD and self.stop.is_alone and self.stop.name is not None:
            raise StopNow
        if phase is Phase.OPTIMIZER:
            said = largest_of_ranks(self.engine.process, _STOP if self.stop.name is not None else _FINE)
            if said == _NO_MEMORY:
                raise _PeerHasNoMemoryError
            self.stops, self._has_agreed = said == _STOP, True
        yield

    def _check_undoable(self, reason: str) -> None:
        """Refuse what cannot be undone: an update that has begun, or a collective in which other ranks wait."""
        if self.engine.process.world_size > 1 and (self._has_agreed or self.engine.name != "plain"):
            smaller = self.limits.smaller(self.longest)
            if smaller is not None:
                self.keep(smaller)
            cure = "--resume goes on with " + str(smaller) if smaller else "take a smaller model or shorter texts"
            raise DoesNotFitError(f"out of memory on rank {self.engine.process.rank}: {reason}; {cure}")
        if self._has_agreed:
            raise UpdateFailedError(reason)

    def shrink(self, step: int, reason: str) -> None:
        """Undo the step and shrink the limits.

        Args:
            step: its number, for the record.
            reason: what the allocator said.

        Raises:
            DoesNotFitError: they are the smallest already.
        """
        self.engine.discard_gradients()
        release_memory(self.engine.device)
        before, smaller = self.limits, self.limits.smaller(self.longest)
        if smaller is None:
            raise DoesNotFitError(
                f"out of memory with one sequence of up to {self.longest} tokens at a time and every layer recomputed: "
                f"{reason}; try a shorter data.max_length, method qlora, a higher engine.zero_stage or offload"
            )
        if smaller.checkpointing != before.checkpointing:
            set_checkpointing(self.engine.model, smaller.checkpointing)
        self.limits = smaller
        self.keep(smaller)
        self.tell(RecoveryLine(step=step, reason=reason, before=str(before), after=str(smaller)))


def trial(attempts: Attempts, attempt: Callable[[Limits], StepResult]) -> None:
    """Take a step that changes nothing, so that memory runs out now and not after hours.

    The learning rate is zero, so weights stay what they are to the bit; moments and loss scale begin anew afterwards.

    Args:
        attempts: shrinks its limits as far as the step needs.
        attempt: takes the worst step of the run with a learning rate of zero.
    """
    try:
        attempts.take(0, attempt)
    except UpdateFailedError as error:  # nothing is lost: a learning rate of zero has changed no weight
        attempts.engine.reset_optimizer()
        attempts.shrink(0, str(error))
        trial(attempts, attempt)
        return
    attempts.engine.reset_optimizer()
