"""Weigh the classes in training: balanced by their rows, or as a user says."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ftkit.data.arrays import Labels, TokenSplit
from ftkit.errors import ConfigError, nearest

Asked = Literal["balanced"] | Mapping[str, float] | None


def class_weights(asked: Asked, train: TokenSplit, labels: Labels | None) -> dict[str, float] | None:
    """Return the weight of each label by its name.

    `balanced` gives one class of a text N / (C count), as scikit-learn does, so that every class has the same sum of
    weights; of several labels each gets (N - count) / count, so that texts with it weigh as much as those without.
    A label that no training row has weighs 1.

    Args:
        asked: `balanced`, a weight for some of the names, or nothing.
        train: the training split, N sequences.
        labels: their C names, and their kind.

    Returns:
        Each name to a number above 0, in their order; None where nothing is asked for.

    Raises:
        ConfigError: there are no classes to weigh, or a name is not one of them.
    """
    if asked is None:
        return None
    if labels is None or labels.kind == "regression":
        what = "texts of a language model" if labels is None else "numbers to predict"
        raise ConfigError(f"training.class_weights weighs classes, and {what} have none; leave it out")
    if asked != "balanced":
        return _named(asked, labels.names)
    weights = _by_label(train.labels) if labels.kind == "multi" else _by_class(train.labels, len(labels.names))
    return dict(zip(labels.names, weights, strict=True))


def _by_class(labels: NDArray[np.int64], num_labels: int) -> list[float]:
    counts = np.bincount(labels, minlength=num_labels)
    num_present = int((counts > 0).sum())
    return [float(len(labels) / (num_present * count)) if count else 1.0 for count in counts]


def _by_label(labels: NDArray[np.int8]) -> list[float]:
    counts = (labels == 1).sum(axis=0)
    return [float((len(labels) - count) / count) if 0 < count < len(labels) else 1.0 for count in counts]


def _named(asked: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    for name in asked:
        if name not in names:
            raise ConfigError(f"training.class_weights names {name!r}, which is not a label; {nearest(name, names)}")
    return {name: float(asked.get(name, 1.0)) for name in names}
