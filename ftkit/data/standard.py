"""Numbers to predict, brought to mean 0 and deviation 1 where that is asked for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ftkit.errors import DataError


@dataclass(frozen=True)
class Standard:
    """The shift and scale that bring numbers to mean 0 and deviation 1.

    Attributes:
        mean: of the training split.
        deviation: of the training split, above 0.
    """

    mean: float
    deviation: float

    def standardized(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return numbers of the data as the model learns them."""
        return (values - self.mean) / self.deviation

    def restored(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return numbers of the model as the data has them."""
        return values * self.deviation + self.mean


AS_THEY_ARE = Standard(0.0, 1.0)
"""Numbers that are learned as the data has them."""


def standard_of(values: NDArray[np.float64], name: str) -> Standard:
    """Return what brings numbers to mean 0 and deviation 1.

    Args:
        values: of the training split, float64 [N].
        name: the column's name, for the error.

    Returns:
        Mean and standard deviation (of the N values, not of a population).

    Raises:
        DataError: they are all the same.
    """
    refuse_constant(values, name)
    return Standard(float(values.mean()), float(values.std()))


def refuse_constant(values: NDArray[np.float64], name: str) -> None:
    """Refuse numbers to predict that are all the same, of the training split, float64 [N]; `name` is their column."""
    if len(values) and values.min() == values.max():
        raise DataError(f"all numbers in {name!r} are {values[0]:g}, so there is nothing to learn; name another column")
