"""The protocol of an engine, which two files implement; nobody above asks which one a run has."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ftkit.data.batching import MicroBatch
from ftkit.machine.memory import is_out_of_memory
from ftkit.machine.process import ProcessContext
from ftkit.models.objective import Objective
from ftkit.records.figures import Kind


class OutOfStepError(Exception):
    """Memory ran out inside a collective's work, to which this rank cannot come any more and where the others wait."""


@contextmanager
def explained_standstill(process: ProcessContext) -> Iterator[None]:
    """Tell memory that runs out among collectives from memory that runs out elsewhere.

    Args:
        process: the place of this process; where it is alone, nobody waits.

    Raises:
        OutOfStepError: memory ran out while other ranks wait.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if process.world_size == 1 or not is_out_of_memory(error):
            raise
        raise OutOfStepError(" ".join(str(error).split())) from error


Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """The part of a tensor that one rank has.

    Attributes:
        shape: of the whole tensor.
        offset: the place of the part's first number in the whole tensor, flat.
        numel: numbers of the part, without padding; 0 where the tensor is too short for this rank.
        read: returns them, flat, in fp32 on the CPU.
    """

    shape: tuple[int, ...]
    offset: int
    numel: int
    read: Callable[[], torch.Tensor]


Parts = dict[str, Part]


class Scorer(Protocol):
    """A model that answers and is scored, on one process or many: what an evaluation needs of an engine."""

    objective: Objective
    """What the model is scored by."""

    @property
    def name(self) -> str:
        """`plain` or `deepspeed`."""

    @property
    def model(self) -> nn.Module:
        """The module that was built, wherever its weights are now."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    def dtype(self) -> torch.dtype:
        """What weights and activations compute in."""

    @property
    def process(self) -> ProcessContext:
        """This rank's place."""

    @property
    def shares_forwards(self) -> bool:
        """Whether the ranks wait for one another in each forward, so that none may run one more than the others."""

    def begin_step(self, num_micro_batches: int) -> None:
        """Say how many losses and backwards come before `apply_gradients`; none before a forward of an evaluation."""

    def rewind(self) -> int:
        """Return to the start of the pass in which memory ran out, on this rank alone, whose peers went on.

        The pass is one forward, and the backward where the step has one. What is run next has to be the same pass with
        another micro-batch; it is in step with the other ranks, and its results mean nothing.

        Returns:
            The losses and backwards that were to come in this step, this one counted.
        """

    def loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return the loss summed over the targets of a micro-batch, a scalar in fp32: model and objective in one."""

    def logits(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return logits, [B, C] or [B, T, V], for an evaluation or a prediction."""

    def sum_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all ranks, on every rank."""


class Engine(Scorer, Protocol):
    """A model and its optimizer, on one process or many. All methods are called by every rank, in the same order."""

    def groups(self, micro_batches: Sequence[MicroBatch]) -> Iterator[Sequence[MicroBatch]]:
        """Yield the micro-batches of a step in groups: those of one have their forwards before their backwards.

        A group is one micro-batch, but where streamed layers come for several at once.
        """

    def losses(self, group: Sequence[MicroBatch]) -> Sequence[torch.Tensor]:
        """Return `loss` of each micro-batch of a group; `backward` is given their sum."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss to the sums, which are fp32."""

    def discard_gradients(self) -> None:
        """Drop the sums of a step that is undone; the next step is as if that one had never begun."""

    def apply_gradients(self, learning_rate: float) -> torch.Tensor:
        """Sum gradients over ranks, clip, update, clear; return their global norm before clipping.

        Raises:
            OutOfStepError: memory ran out where other ranks wait for this one. Any other error for want of memory
                comes when the ranks no longer wait, and leaves weights of which nobody knows how far they came.
        """

    def reset_optimizer(self) -> None:
        """Return moments, step counts and loss scale to what they were before the first step."""

    def trainable_state(self, *, copy: bool = True) -> Tensors:
        """Return what trains in fp32, whole, on the CPU of every rank, by name in the model.

        Args:
            copy: False where they may be the engine's own, if it has them there; the next step changes them.
        """

    def load_trainable_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `trainable_state` returned, perhaps on another engine or number of ranks."""

    def optimizer_state(self, *, copy: bool = True) -> Tensors:
        """Return the optimizer's tensors, whole, on the CPU of every rank, as `parameter name/moment`.

        Args:
            copy: as in `trainable_state`.
        """

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `optimizer_state` returned."""

    def trainable_parts(self) -> Parts:
        """Return this rank's parts of what `trainable_state` gathers; asked only where weights are partitioned."""

    def optimizer_parts(self) -> Parts:
        """Return this rank's parts of what `optimizer_state` gathers, numbers first, which the first rank alone has."""

    def held_tensors(self) -> Iterator[tuple[Kind, torch.Tensor]]:
        """Yield what lives between two steps, each with the part of a breakdown that it is."""

    def round_trainable(self, dtype: torch.dtype) -> None:
        """Round what trains to a type of fewer digits, masters and weights."""

    def weights(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield weights, whole, on the CPU of every rank, one after another, so that no rank need hold all of them.

        Args:
            names: in the model, the same on every rank; each rank has to take all that is yielded.

        Yields:
            Name and tensor, which may be the model's own: what trains in fp32, what does not as it computes.
        """
