"""Splits, found or made. What is made depends on the rows and the seed alone.

Legend: N rows, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftkit.config.tree import DataConfig
from ftkit.errors import DataError, nearest
from ftkit.units import counted

TRAIN, VALIDATION, TEST = 0, 1, 2
"""The parts that rows are given to."""

_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Shares:
    """The shares of the training split that become other splits; 0 makes none.

    Attributes:
        validation: at least 0, below 1.
        test: at least 0, below 1.
    """

    validation: float
    test: float

    def sizes(self, num_rows: int) -> dict[int, int]:
        """Return part to rows for the parts to be made, test first.

        Args:
            num_rows: N, of the split that they are taken from.

        Raises:
            DataError: a share leaves nothing for its split, or the shares leave nothing for training.
        """
        wanted = {TEST: ("test", self.test), VALIDATION: ("validation", self.validation)}
        sizes = {part: round(share * num_rows) for part, (_, share) in wanted.items() if share > 0}
        for part, size in sizes.items():
            name, share = wanted[part]
            if size == 0:
                raise DataError(
                    f"data.{name}_share={share} of {counted(num_rows, 'row')} is less than a row; raise it, give more "
                    f"rows, or make no such split with --set data.{name}_share=0"
                )
        if sum(sizes.values()) >= num_rows:
            raise DataError(
                f"data.validation_share={self.validation} and test_share={self.test} leave none of "
                f"{counted(num_rows, 'row')} for training; lower them"
            )
        return sizes


def is_split_name(name: str) -> bool:
    """Whether a name is, as a whole and in any letter case, what a split is usually called."""
    return any(name.lower() in aliases for aliases in _ALIASES.values())


def find_splits(config: DataConfig, names: Sequence[str], others: Sequence[str] = ()) -> dict[str, str]:
    """Find which of a dataset's splits train, validate and test.

    Args:
        config: `train_split`, `validation_split` and `test_split`.
        names: the splits that there are.
        others: what is a split only where the configuration names it, such as the files of a folder.

    Returns:
        `train`, and `validation` and `test` where there are such, to the dataset's own name.

    Raises:
        DataError: a named split is not there, or several could be meant.
    """
    train = _find(config.train_split, "train", names, others)
    if train is None:
        named = f"name one with --set data.train_split=NAME; splits: {', '.join(names)}"
        raise DataError(f"no split {config.train_split!r}; {named}")
    found = {"train": train}
    for role, given in (("validation", config.validation_split), ("test", config.test_split)):
        if given is not None and given in found.values():
            raise DataError(f"data.{role}_split={given!r} is in use already ({found}); name another split")
        split = _find(given, role, [name for name in names if given or name not in found.values()], others)
        if split is not None:
            found[role] = split
    return found


def _find(given: str | None, role: str, names: Sequence[str], others: Sequence[str]) -> str | None:
    known = dict.fromkeys((*names, *others))
    if given is not None and given in known:
        return given
    if given is not None and given != "train":
        raise DataError(f"data.{role}_split={given!r} is not a split of the dataset; {nearest(given, known)}")
    found = [name for name in names if name.lower() in _ALIASES[role]]
    found = found or [name for name in names if name.lower().startswith(f"{role}_")]
    if len(found) > 1:
        raise DataError(
            f"several splits could be the {role} split: {', '.join(found)}; name one with --set data.{role}_split=NAME"
        )
    return found[0] if found else None


def strata(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return rows of like labels as numbers, int64 [N]: their class, set of labels, or place among all numbers."""
    if labels.dtype == np.int64:
        return labels
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def draw_stratified(strata: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw rows such that every stratum has its share, to within one row.

    Rows are laid out by stratum, shuffled inside, and taken at equal distances from a random start
    (systematic sampling).

    Args:
        strata: int64 [N].
        size: how many rows, at most N.
        rng: the only source of chance.

    Returns:
        int64 [size], ascending.
    """
    num_rows = len(strata)
    order = np.lexsort((rng.random(num_rows), strata))
    places = (np.arange(size) * num_rows + int(rng.integers(num_rows))) // max(size, 1)
    return np.sort(order[places])


def assign_stratified(labels: NDArray[Any], shares: Shares, seed: int) -> NDArray[np.int8]:
    """Give rows to splits such that every split has every label's share, and training every label.

    Args:
        labels: classes, int64 [N], all the same where there are none; int8 [N, C] of 0 and 1; or numbers, float64 [N].
        shares: of N.
        seed: the only source of chance.

    Returns:
        int8 [N]: `TRAIN`, `VALIDATION` or `TEST`.

    Raises:
        DataError: the shares are too small or too large for N rows.
    """
    rng = np.random.default_rng([seed, 0])
    parts, like = np.full(len(labels), TRAIN, dtype=np.int8), strata(labels)
    for part, size in shares.sizes(len(labels)).items():
        rest = np.flatnonzero(parts == TRAIN)
        parts[rest[draw_stratified(like[rest], size, rng)]] = part
    if labels.dtype != np.float64:
        _return_lost(parts, labels)
    return parts


def assign_grouped(groups: NDArray[np.int64], shares: Shares, seed: int) -> NDArray[np.int8]:
    """Give whole groups to splits: shuffled, then each to a split that it still fits in, else to training.

    Args:
        groups: int64 [N], from 0 to G - 1, each of them present.
        shares: of N.
        seed: the only source of chance.

    Returns:
        int8 [N]: `TRAIN`, `VALIDATION` or `TEST`.

    Raises:
        DataError: there are fewer groups than splits, or the groups are too large.
    """
    sizes = shares.sizes(len(groups))
    counts = np.bincount(groups)
    if len(counts) <= len(sizes):
        raise DataError(
            f"data.group_column has {counted(len(counts), 'group')} for {len(sizes) + 1} splits; name a "
            "column with more groups, or give --set data.validation_share=0 or --set data.test_share=0"
        )
    order = np.random.default_rng([seed, 0]).permutation(len(counts))
    part_of_group = np.full(len(counts), TRAIN, dtype=np.int8)
    for part, room in sizes.items():
        free = order[part_of_group[order] == TRAIN]
        part_of_group[_fitting(free, counts, room)] = part
    if not (part_of_group == TRAIN).any():
        raise DataError("data.group_column has groups so large that none is left for training; name a finer column")
    return part_of_group[groups]


def _return_lost(parts: NDArray[np.int8], labels: NDArray[Any]) -> None:
    """Give a row of each label that training lost back to it, in place: nothing else can learn it."""
    if labels.ndim == 1:
        lost = [labels == label for label in np.setdiff1d(labels, labels[parts == TRAIN])]
    else:
        lost = [have for have in (labels == 1).T if have.any() and not have[parts == TRAIN].any()]
    for have in lost:
        parts[np.flatnonzero(have)[0]] = TRAIN


def _fitting(groups: NDArray[np.int64], counts: NDArray[np.int64], room: int) -> list[int]:
    """Return groups, in order, that fit into `room` rows together; the smallest one where none does."""
    taken = []
    for group in groups.tolist():
        if counts[group] <= room:
            taken.append(group)
            room -= int(counts[group])
    return taken or [int(groups[np.argmin(counts[groups])])]


def assign_contiguous(num_rows: int, shares: Shares) -> NDArray[np.int8]:
    """Give the lines of a running text to splits in one piece each: training first, test last.

    Args:
        num_rows: N.
        shares: of N.

    Returns:
        int8 [N]: `TRAIN`, `VALIDATION` or `TEST`.

    Raises:
        DataError: the shares are too small or too large for N rows.
    """
    sizes = shares.sizes(num_rows)
    parts = np.full(num_rows, TRAIN, dtype=np.int8)
    end = num_rows
    for part, size in sizes.items():
        parts[end - size : end] = part
        end -= size
    return parts
