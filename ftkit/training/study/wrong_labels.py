"""Find labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang, JAIR 2021).

A class's threshold is the mean probability of that class among the sequences that are labelled so: what it takes to be
as sure as usual. A sequence whose surest class above its threshold is not its label is suspected. Probabilities must
be of regressions that have not seen the sequence.

Dimension letters: N sequences, C classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Suspicions:
    """The labels that may be wrong.

    Attributes:
        places: of sequences, the most suspicious first.
        suggested: the class of each instead.
        margins_N: of all sequences: the probability of the label less that of the surest other class, from -1 to 1.
    """

    places: NDArray[np.int64]
    suggested: NDArray[np.int64]
    margins_N: NDArray[np.float64]


def find_wrong(probabilities_NC: NDArray[np.float64], labels: NDArray[np.int64]) -> Suspicions:
    """Find the labels that are probably wrong.

    Args:
        probabilities_NC: out of fold.
        labels: [N].

    Returns:
        The suspicions.
    """
    rows = np.arange(len(labels))
    own = probabilities_NC[rows, labels]
    others = probabilities_NC.copy()
    others[rows, labels] = -np.inf
    margins = own - others.max(axis=1)
    thresholds = np.array([_mean(own[labels == label]) for label in range(probabilities_NC.shape[1])])
    sure = np.where(probabilities_NC >= thresholds, probabilities_NC, -np.inf)
    surest = sure.argmax(axis=1)
    is_wrong = np.isfinite(sure.max(axis=1)) & (surest != labels)
    places = np.flatnonzero(is_wrong)
    places = places[np.argsort(margins[places], kind="stable")]
    return Suspicions(places, surest[places], margins)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else np.inf
