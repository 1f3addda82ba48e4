"""Whether the probabilities of a model are what they say: calibration, a temperature, and a threshold of two classes.

Of several labels a text, each label is a question of its own with two answers. Dimension letters: C class, N questions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ftkit.records.answers import Answers

Shares = NDArray[np.float64]
Classes = NDArray[np.int64]

NUM_BINS = 15
"""As Guo et al. 2017, On Calibration of Modern Neural Networks."""
_LOWEST = 1e-300  # a probability of 0 has no logarithm
_HOTTEST, _HALVINGS = 100.0, 60


@dataclass(frozen=True)
class Bin:
    """The questions whose answer was given with about the same confidence.

    Attributes:
        confidence: the mean probability of the answers.
        accuracy: the share that is right.
        count: how many.
    """

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Threshold:
    """The probability of the second class from which on it is answered, as it is best on validation.

    Attributes:
        value: from 0 to 1.
        f1_macro: by split, at the threshold.
        accuracy: by split, at the threshold.
    """

    value: float
    f1_macro: dict[str, float]
    accuracy: dict[str, float]


def questions(answers: Answers) -> tuple[Shares, Classes]:
    """Return the probabilities of all questions, [N, C], and the classes that are true, [N].

    Args:
        answers: of classes or of several labels, whose N texts and C labels give N C questions of two answers.
    """
    shares = answers.probabilities
    assert shares is not None
    if answers.kind == "multi":
        flat = shares.ravel()
        return np.stack([1 - flat, flat], axis=1), answers.labels.ravel().astype(np.int64)
    return shares, answers.labels


def reliability(shares: Shares, true: Classes) -> list[Bin]:
    """Return the bins of equal width that any answer falls into, by rising confidence."""
    confidence, is_right = shares.max(axis=1), shares.argmax(axis=1) == true
    number = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    members = [number == place for place in range(NUM_BINS)]
    return [
        Bin(float(confidence[inside].mean()), float(is_right[inside].mean()), int(inside.sum()))
        for inside in members
        if inside.any()
    ]


def calibration_error(shares: Shares, true: Classes) -> float:
    """Return the expected calibration error: how far confidence and accuracy of a bin are apart, by its size."""
    bins = reliability(shares, true)
    return sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / len(true)


def fit_temperature(shares: Shares, true: Classes) -> float:
    """Return the temperature that makes the true classes the most likely.

    The likelihood is concave in 1 / temperature, whose derivative is the sum of z_true - E[z] over the questions, z
    being the logarithms of the probabilities: the place where it is 0 is found by halving.

    Args:
        shares: [N, C].
        true: [N].

    Returns:
        A number from 1/100, where everything is right, to 100, where nothing is.
    """
    logs = np.log(np.maximum(shares, _LOWEST))
    wanted = logs[np.arange(len(true)), true].sum()
    low, high = 1 / _HOTTEST, _HOTTEST  # of 1 / temperature
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        if (at_temperature(shares, 1 / middle) * logs).sum() <= wanted:
            low = middle
        else:
            high = middle
    return 1 / float(np.sqrt(low * high))


def at_temperature(shares: Shares, temperature: float) -> Shares:
    """Return the probabilities when all logits are divided by a temperature, [N, C]."""
    logs = np.log(np.maximum(shares, _LOWEST)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def tune_threshold(validation: Answers, others: list[Answers]) -> Threshold | None:
    """Return the threshold with the highest macro F1 on validation, the nearest to one half of several.

    Args:
        validation: the answers that it is chosen by.
        others: splits that are scored at it too.

    Returns:
        None where there are not exactly two classes.
    """
    shares = validation.probabilities
    if validation.kind != "single" or len(validation.names) != 2 or shares is None:
        return None
    value = _best_threshold(shares[:, 1], validation.labels == 1)
    scored = {one.split: _scores_at(value, one) for one in (validation, *others)}
    return Threshold(
        value,
        {split: f1 for split, (f1, _) in scored.items()},
        {split: accuracy for split, (_, accuracy) in scored.items()},
    )


def _best_threshold(share: Shares, is_second: NDArray[np.bool_]) -> float:
    """Try one half and every place between two neighbouring probabilities."""
    levels = np.unique(share)
    candidates = np.unique(np.append((levels[:-1] + levels[1:]) / 2, 0.5))
    order = np.argsort(share, kind="stable")
    first = np.searchsorted(share[order], candidates)  # from here on the second class is answered
    hits = np.append(np.cumsum(is_second[order][::-1])[::-1], 0)[first]
    f1 = _f1_macro(hits, len(share) - first, int(is_second.sum()), len(share))
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _f1_macro(hits: NDArray[np.int64], answered: NDArray[np.int64], true: int, total: int) -> Shares:
    """Return the macro F1 of two classes from how often the second is answered, is true, and both."""
    of_second = 2 * hits / np.maximum(answered + true, 1)
    rejected = total - true - answered + hits
    of_first = 2 * rejected / np.maximum(2 * total - answered - true, 1)
    return np.asarray((of_first + of_second) / 2)


def _scores_at(value: float, answers: Answers) -> tuple[float, float]:
    """Return macro F1 and accuracy at a threshold."""
    assert answers.probabilities is not None
    answered, true = answers.probabilities[:, 1] >= value, answers.labels == 1
    hits, number = np.array([(answered & true).sum()]), np.array([answered.sum()])
    return float(_f1_macro(hits, number, int(true.sum()), len(true))[0]), float((answered == true).mean())
