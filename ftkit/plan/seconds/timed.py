"""Operators that were timed inside real steps, and what they say of others of their name that do more or less."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FARTHEST = 32
"""By how much more than what was timed an operator may do to be taken for as quick; a small one is all overhead."""


@dataclass(frozen=True)
class Timed:
    """An operator as it was timed inside a real step.

    Attributes:
        flops: that it computed.
        moved: bytes of what it was given and what it made.
        seconds: that it took.
    """

    flops: int
    moved: int
    seconds: float

    def distance(self, flops: float, moved: float) -> float:
        """Return how far another size is away, in powers of e."""
        return abs(math.log((self.flops + 1) / (flops + 1))) + abs(math.log((self.moved + 1) / (moved + 1)))

    def scale(self, flops: float, moved: float) -> float:
        """Return how many times as much another size does: by arithmetic where there is some, else by bytes."""
        return flops / self.flops if self.flops and flops else (moved + 1) / (self.moved + 1)


@dataclass(frozen=True)
class Law:
    """What an operator takes by its size: a call, each FLOP, and each byte.

    Attributes:
        each_call: seconds.
        each_flop: seconds.
        each_byte: seconds.
    """

    each_call: float
    each_flop: float
    each_byte: float

    def seconds(self, flops: float, moved: float) -> float:
        """Return what an operator of a size takes."""
        return self.each_call + flops * self.each_flop + moved * self.each_byte


def law_of(timed: Sequence[Timed]) -> Law:
    """Return the law that comes nearest to what was timed, each by its share: none of its parts is below zero.

    Args:
        timed: of one operator, in one size or more. Of a single size no law can tell the parts apart, and all is taken
            to grow with it, as by bytes alone where there is no arithmetic.
    """
    sizes = np.array([(1.0, one.flops, one.moved + 1) for one in timed])
    taken = np.array([one.seconds for one in timed])
    relative = sizes / taken[:, None]
    best, least = None, math.inf
    # The fewest parts first: another one has to come nearer. Nothing but a call is no law while sizes are unlike.
    for parts in itertools.chain.from_iterable(itertools.combinations((2, 1, 0), count) for count in (1, 2, 3)):
        columns = relative[:, parts]
        found, *_ = np.linalg.lstsq(columns, np.ones(len(timed)), rcond=None)
        off = float(np.square(columns @ found - 1).sum())
        if (found >= 0).all() and off < least - 1e-9:
            best, least = dict(zip(parts, found.tolist(), strict=True)), off
    assert best is not None  # a law of bytes alone is always above zero
    return Law(best.get(0, 0.0), best.get(1, 0.0), best.get(2, 0.0))


def seconds_of(timed: Sequence[Timed], law: Law, flops: float, moved: float) -> float | None:
    """Return how long an operator takes: as the nearest that was timed, made as much longer as the law says.

    Args:
        timed: those of its name.
        law: of these.
        flops: that it computes.
        moved: bytes of what it is given and what it makes.

    Returns:
        Seconds; None where it does far more than any of them.
    """
    near = min(timed, key=lambda one: one.distance(flops, moved))
    if near.scale(flops, moved) > _FARTHEST:
        return None
    return near.seconds * law.seconds(flops, moved + 1) / law.seconds(near.flops, near.moved + 1)
