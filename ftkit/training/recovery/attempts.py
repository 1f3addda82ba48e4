"""Take a step again, with smaller limits, where memory ran out; and give one up where the run was asked to stop.

A step is undone by dropping its gradients, and the same global batch is cut anew. Ranks agree twice in a step, before
the update and after it, so that all of them do the same:

    memory runs out in a forward or a backward    this rank goes through the rest of the step with one short sequence,
                                                  so that it stays in step; before the update all ranks hear of it,
                                                  undo the step and take it again
    memory runs out in the update                 weights may be half updated: after the update all ranks hear of it
                                                  and go back to the last checkpoint
    memory runs out among collectives of the      the others wait for what does not come: the job ends and says with
    update, or for one short sequence             which limits to resume
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ftkit.config.tree import RunConfig
from ftkit.data.batching import MicroBatch
from ftkit.engine.protocol import Engine, OutOfStepError
from ftkit.errors import DoesNotFitError
from ftkit.machine.memory import available_bytes, is_out_of_memory, release_memory
from ftkit.machine.ranks import largest_of_ranks
from ftkit.models.activations.recompute import set_recompute
from ftkit.records.schema import RecoveryLine
from ftkit.step.observer import Phase
from ftkit.step.step import StepResult
from ftkit.training.recovery.limits import BEYOND, Limits
from ftkit.training.recovery.signals import StopNow, StopRequest
from ftkit.units import format_bytes

_FINE, _STOP, _NO_MEMORY = range(3)
"""What a rank says when all of them agree; the largest of all is what every rank does."""
_ANOTHER = "memory ran out on another rank"
_NOT_KNOWN = 2**62
"""More bytes than any rank has, of a rank whose memory did not run out or does not tell."""


class UpdateFailedError(Exception):
    """Memory ran out inside the update, so the weights are not known to be those of any step."""


class _PeerHasNoMemoryError(Exception):
    """Memory ran out on another rank."""


@dataclass
class Attempts:
    """Takes the steps of a run, each as often as it needs.

    Attributes:
        engine: what trains.
        limits: those of the next step; they only shrink.
        longest: tokens of the longest sequence of the data.
        shortest_micro_batch: makes a micro-batch of one short sequence.
        stop: whether this rank was asked to stop.
        tell: takes what happened.
        keep: takes limits that a resumed run is to begin with.
        groups: whether several micro-batches go through a streamed layer at a time.
        stops: whether any rank was asked to, so that all of them stop after this step.
        available: bytes that this rank could have when memory ran out on it.
    """

    engine: Engine
    limits: Limits
    longest: int
    shortest_micro_batch: Callable[[], MicroBatch]
    stop: StopRequest
    tell: Callable[[RecoveryLine], None]
    keep: Callable[[Limits], None]
    groups: bool = False
    stops: bool = False
    available: int = _NOT_KNOWN

    def take(self, step: int, attempt: Callable[[Limits], StepResult]) -> StepResult:
        """Take a step until it fits.

        Args:
            step: its number, for the record.
            attempt: cuts the global batch within limits and runs `train_step`, told of its phases by `during`.

        Returns:
            What the step left.

        Raises:
            DoesNotFitError: one sequence with every layer recomputed does not fit, or this rank cannot catch up.
            UpdateFailedError: memory ran out inside the update.
            StopNow: the run was asked to stop; the step is undone.
        """
        while True:
            own_reason = None
            try:
                return attempt(self.limits)
            except StopNow:
                self.engine.discard_gradients()
                raise
            except _PeerHasNoMemoryError:
                pass
            except OutOfStepError as error:
                raise self._ended(str(error)) from error
            except (RuntimeError, MemoryError) as error:
                own_reason = self._ran_out(error)
            # Outside the handlers, whose exception holds the tensors of the failed step.
            if own_reason is not None:
                self._catch_up(own_reason)
            self.shrink(step, own_reason or _ANOTHER)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Agree with the other ranks around the update, and give the step up between two micro-batches if asked to.

        Args:
            phase: of the step.

        Raises:
            UpdateFailedError, StopNow: as `take`.
        """
        if phase is Phase.FORWARD and self.stop.is_alone and self.stop.name is not None:
            raise StopNow
        if phase is not Phase.OPTIMIZER:
            yield
            return
        answer = self._agree(_FINE if self.stop.name is None else _STOP)
        if answer == _NO_MEMORY:
            raise _PeerHasNoMemoryError
        self.stops = answer == _STOP
        own_reason = None
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            own_reason = self._ran_out(error)
        if self._agree(_FINE if own_reason is None else _NO_MEMORY) == _NO_MEMORY:
            raise UpdateFailedError(own_reason or _ANOTHER)

    def _ran_out(self, error: Exception) -> str:
        """Return what the allocator said, and note what memory there was before any is given back."""
        reason = _reason(error)
        self.available = available_bytes(self.engine.device) or _NOT_KNOWN
        return reason

    def _least_available(self) -> int | None:
        """Return the least memory that a rank had on which it ran out; called by all ranks."""
        least = -largest_of_ranks(self.engine.process, -self.available)
        self.available = _NOT_KNOWN
        return None if least == _NOT_KNOWN else least

    def _agree(self, answer: int) -> int:
        return largest_of_ranks(self.engine.process, answer)

    def _catch_up(self, reason: str) -> None:
        """Come to the point where all ranks agree, and tell the others."""
        if self.engine.process.world_size == 1:
            return
        release_memory(self.engine.device)
        try:
            for _ in range(self.engine.rewind()):
                self.engine.backward(self.engine.loss(self.shortest_micro_batch()))
        except (RuntimeError, MemoryError) as error:
            raise self._ended(f"{reason}; then, for one short sequence: {_reason(error)}") from error
        self._agree(_NO_MEMORY)

    def _ended(self, reason: str) -> DoesNotFitError:
        """Keep smaller limits, and return the error that ends the job."""
        smaller = self.limits.smaller(self.longest)
        if smaller is not None:
            self.keep(smaller)
        cure = f"--resume goes on with {smaller}" if smaller else "take a smaller model or shorter texts"
        rank = self.engine.process.rank
        return DoesNotFitError(f"out of memory on rank {rank}, while others wait for it: {reason}; {cure}")

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
        available = self._least_available()
        before, smaller = self.limits, self.limits.smaller(self.longest)
        if smaller is None:
            raise DoesNotFitError(
                f"out of memory with one sequence of up to {self.longest} tokens at a time and every layer recomputed: "
                f"{reason}{had(available, self.engine.device.type)}; try "
                f"{_one_by_one(self.groups)}{BEYOND}"
            )
        if smaller.recompute != before.recompute:
            set_recompute(self.engine.model, smaller.recompute)
        self.limits = smaller
        if self.engine.process.is_main:
            self.keep(smaller)
        line = RecoveryLine(step=step, reason=reason, available_bytes=available, before=str(before), after=str(smaller))
        self.tell(line)


def _one_by_one(groups: bool) -> str:
    """Return the cure that comes before all others where the inputs of several micro-batches are kept."""
    return "engine.stream_micro_batches=1 (the mathematics stays the same), " if groups else ""


def had(available: int | None, device_type: str) -> str:
    """Return what memory there was when it ran out, and how to plan for no more; nothing where it is not known.

    Args:
        available: bytes.
        device_type: such as `cuda`.
    """
    if available is None:
        return ""
    budget = "--ram-budget" if device_type == "cpu" else "--memory-budget"
    flag = f"{budget} {available // 2**20}MiB"
    return f" (this process could have {format_bytes(available)}: `ftkit plan {flag}` plans for that)"


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


def _reason(error: Exception) -> str:
    """Return what the allocator said, in a line; an error that says something else is raised again."""
    if not is_out_of_memory(error):
        raise error
    return " ".join(str(error).split())[:200]


@contextmanager
def explained_memory(config: RunConfig) -> Iterator[None]:
    """Turn what is left of memory running out, such as while a model is loaded, into the cures, cheapest first.

    Args:
        config: the run.

    Raises:
        DoesNotFitError: memory ran out. Other errors pass.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason, limit = _reason(error), config.batch.token_limit
        groups = config.engine.stream_micro_batches != 1
        cut_cure = f"batch.micro_batch_tokens below {limit}" if limit else "batch.micro_batch_size lower"
        raise DoesNotFitError(
            f"out of memory: {reason}. Try {_one_by_one(groups)}{cut_cure} (the mathematics stays the same), then "
            "model.recompute=cheap or layer, then method qlora, then a higher engine.zero_stage or offload"
        ) from error
