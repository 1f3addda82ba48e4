"""The phases of a step, and the observers that are told of them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Phase(StrEnum):
    """The phases of a run; a record names one by its value."""

    LOAD = "load"  # all that comes before the first step
    FORWARD = "forward"  # of one micro-batch, with its loss
    BACKWARD = "backward"  # of one micro-batch
    OPTIMIZER = "optimizer"  # gradients are summed and clipped, weights updated
    EVALUATION = "evaluation"  # forwards alone
    TRUNK = "trunk"  # the frozen layers run once over all sequences, before the first step


class Observer(Protocol):
    """Hears when a phase begins and ends; it changes nothing."""

    def during(self, phase: Phase) -> AbstractContextManager[object]:
        """Return a context that lasts as long as the phase."""


@dataclass(frozen=True)
class Observers:
    """Several observers, each told of every phase."""

    each: tuple[Observer, ...] = ()

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Tell each of them, the first one first; of the end in the other order."""
        with ExitStack() as stack:
            for observer in self.each:
                stack.enter_context(observer.during(phase))
            yield


NOTHING: Observer = Observers()
"""Nobody looks."""
