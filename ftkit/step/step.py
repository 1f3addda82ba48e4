"""One optimizer step: the one function that training, planning and profiling all run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from ftkit.data.batching import MicroBatch
from ftkit.engine.protocol import Engine
from ftkit.step.observer import NOTHING, Observer, Phase


@dataclass(frozen=True)
class StepResult:
    """The result of a step, on the device and not yet read.

    Attributes:
        loss: scalar fp32, the mean over the targets of the global batch.
        grad_norm: scalar fp32, the global norm before clipping.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor


def train_step(
    engine: Engine,
    micro_batches: Sequence[MicroBatch],
    num_targets: float,
    learning_rate: float,
    observer: Observer = NOTHING,
) -> StepResult:
    """Run one optimizer step on this rank's share of a global batch.

    Args:
        engine: the model and its optimizer; every rank calls with the same number of micro-batches.
        micro_batches: this rank's share, on the engine's device.
        num_targets: targets in the whole global batch, over all micro-batches and ranks; or the sum of their weights.
        learning_rate: of this step.
        observer: is told of the phases.

    Returns:
        Loss and gradient norm, the same on every rank.
    """
    total = torch.zeros((), device=engine.device)
    engine.begin_step(len(micro_batches))
    for group in engine.groups(micro_batches):
        with observer.during(Phase.FORWARD):
            losses = [loss / num_targets for loss in engine.losses(group)]
            for loss in losses:
                total += loss.detach()
        with observer.during(Phase.BACKWARD):
            engine.backward(reduce(torch.add, losses))
        del loss, losses  # and with them the graph, which would live on into the next forward
    with observer.during(Phase.OPTIMIZER):
        grad_norm = engine.apply_gradients(learning_rate)
    return StepResult(engine.sum_over_ranks(total), grad_norm)
