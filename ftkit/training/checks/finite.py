"""See that losses, gradients and what is saved are finite, without making the device wait.

A figure that is read back stops the host until the device has computed it, and then the device has nothing to do until
the host has queued the next step. So the two figures of a step are sent to the host when the step is queued, and read
when the next step is: by then they have arrived.
"""

import math
from collections.abc import Mapping

import torch

from ftkit.errors import DivergedError
from ftkit.step.step import StepResult

MOST_SKIPPED = 32
"""Steps in a row that a loss scale may skip: it halves each time, and no scale is left after so many."""
_AT_A_TIME = 2**20
"""Numbers that are looked at together, for which a CPU makes four tensors of their size."""


class FiniteSteps:
    """Looks at the loss and the gradient norm of every step, one step late."""

    def __init__(self, *, may_skip: bool) -> None:
        """Look at the steps of a run.

        Args:
            may_skip: whether the engine skips a step whose gradients overflow, as the loss scale of fp16 makes it do;
                the weights are then as they were.
        """
        self._may_skip = may_skip
        self._queued: tuple[int, torch.Tensor, torch.Event | None] | None = None
        self._num_skipped = 0

    def add(self, step: int, result: StepResult) -> None:
        """Queue the figures of a step that has just been queued, and look at those of the step before.

        Args:
            step: its number.
            result: its loss and its gradient norm, the same on every rank, not yet read.

        Raises:
            DivergedError: as `check`.
        """
        self.check()
        loss = result.loss.detach().float()
        self._queued = step, *_sent(torch.stack((loss, result.grad_norm.to(loss.device).float())))

    def check(self) -> None:
        """Look at the newest step; it comes before whatever keeps the weights that the step has made.

        Raises:
            DivergedError: its loss is NaN or infinite, or its gradients are and no loss scale made it skip the step.
        """
        if self._queued is None:
            return
        step, figures, arrival = self._queued
        self._queued = None
        if arrival is not None:
            arrival.synchronize()
        loss, norm = figures.tolist()
        if not math.isfinite(loss):
            raise DivergedError(f"the loss at step {step} is {loss}", is_before_updates=step == 1)
        self._num_skipped = 0 if math.isfinite(norm) else self._num_skipped + 1
        if self._num_skipped > (MOST_SKIPPED if self._may_skip else 0):
            since = f", as at the {MOST_SKIPPED} before" if self._may_skip else ""
            raise DivergedError(f"the gradient norm at step {step} is {norm}{since}")


def check_tensors(tensors: Mapping[str, torch.Tensor], what: str, step: int) -> None:
    """Refuse to keep tensors that are not finite; a last update can overflow where its loss and gradients did not.

    Args:
        tensors: name to tensor, on the CPU.
        what: they are, such as `weight`.
        step: after which they are kept.

    Raises:
        DivergedError: naming the first tensor.
    """
    for name, tensor in tensors.items():
        parts = tensor.reshape(-1).split(_AT_A_TIME) if tensor.is_floating_point() else ()
        if not all(bool(part.isfinite().all()) for part in parts):
            raise DivergedError(f"the {what} {name} is not finite after step {step}")


def check_loss(loss: float, split: str, step: int) -> None:
    """Refuse an evaluation whose loss is NaN or infinite.

    Args:
        loss: the mean over the split.
        split: its name.
        step: after which it was scored.

    Raises:
        DivergedError: naming the split and the step.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"the {split} loss after step {step} is {loss}")


def _sent(figures: torch.Tensor) -> tuple[torch.Tensor, torch.Event | None]:
    """Return figures on their way to the host, and what tells of their arrival."""
    if figures.device.type == "cpu":
        return figures, None
    # Only a copy into pinned memory goes on while the host does.
    host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
    host.copy_(figures, non_blocking=True)
    arrival = torch.Event(figures.device)
    arrival.record()
    return host, arrival
