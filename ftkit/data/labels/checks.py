"""Check a dataset's labels for what deserves a look before anything trains on them; all of it is counted and said."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ftkit.config.tree import SPLITS
from ftkit.data.findings import Finding, listed, warning

FEW_ROWS = 10
"""Below so many rows one answer moves a class's recall by a tenth or more, and training sees hardly anything of it."""
_SHOWN_GROUPS = 5
_SEPARATORS = (",", ";", "|", "/")
_NO_VALUE = {
    *("#n/a", "#name?", "#null!", "#num!", "#ref!", "#value!", "#div/0!"),
    *("n/a", "na", "nan", "null", "nil", "<na>", "-", "--", "?"),
}
"""What spreadsheets, databases and people write where there is no value, in small letters."""

Keys = Mapping[str, NDArray[np.uint64]]
"""Split to a number for the texts of each row."""


def contradictions(
    keys: Keys, labels: Mapping[str, NDArray[np.int64]], where: Callable[[str, int], str]
) -> list[Finding]:
    """Find texts with more than one label, in one split or in several.

    Args:
        keys: of each split, [N].
        labels: split to a number for the whole label of each row, [N]; equal labels, equal numbers in all splits.
        where: the words for the place of a row: of its split, and in it.

    Returns:
        A warning with their number, their rows and two of these; nothing where there are none.
    """
    key, label = (np.concatenate([part[split] for split in keys]) for part in (keys, labels))
    ordered = np.sort(key)
    repeated = np.isin(key, ordered[1:][ordered[1:] == ordered[:-1]])  # few, mostly, and only they are sorted in pairs
    pairs = np.unique(np.stack([key[repeated], label[repeated].astype(np.uint64)]), axis=1)
    texts, counts = np.unique(pairs[0], return_counts=True)
    several = texts[counts > 1]
    if not len(several):
        return []
    places = np.flatnonzero(key == several[0])
    other = places[label[places] != label[places[0]]][0]
    example = " and ".join(where(*_origin(int(place), keys)) for place in (places[0], other))
    num_rows = int(np.isin(key, several).sum())
    text = f"texts with more than one label: {len(several):,}, in {num_rows:,} rows, such as {example}"
    return [warning(text, "where splits are made, the first row of each text is kept")]


def _origin(place: int, keys: Keys) -> tuple[str, int]:
    """Return the split of a row and its place there, of its place among the rows of all splits."""
    for split, rows in keys.items():
        if place < len(rows):
            return split, place
        place -= len(rows)
    raise AssertionError("a row lies in one of the splits")


def shared_texts(keys: Keys) -> dict[tuple[str, str], int]:
    """Return how many rows of a later split have a text of an earlier one: (later, earlier) to rows, where any do."""
    order = [split for split in SPLITS if split in keys]
    counts = {(two, one): int(np.isin(keys[two], keys[one]).sum()) for one, two in combinations(order, 2)}
    return {pair: count for pair, count in counts.items() if count}


def repeated_texts(keys: Keys) -> dict[str, int]:
    """Return how many rows of a split have the text of an earlier row of it: split to rows, where any do."""
    counts = {split: len(own) - len(np.unique(own)) for split, own in keys.items()}
    return {split: count for split, count in counts.items() if count}


def alike_names(names: Sequence[str]) -> list[Finding]:
    """Find names that differ in nothing but case, width, spaces and punctuation between words."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        words = "".join(sign if sign.isalnum() or unicodedata.category(sign)[0] in "MS" else " " for sign in folded)
        groups.setdefault(" ".join(words.split()) or folded, []).append(name)
    alike = [group for group in groups.values() if len(group) > 1]
    found = [
        warning(
            f"the labels {listed(group)} differ in spelling alone and train as {len(group)} classes",
            "if they are one, write them alike",
        )
        for group in alike[:_SHOWN_GROUPS]
    ]
    rest = len(alike) - _SHOWN_GROUPS
    return [*found, *([warning(f"{rest:,} more groups of labels differ in spelling alone")] if rest > 0 else [])]


def joined_names(names: Sequence[str]) -> list[Finding]:
    """Find names that look like several labels in one: cut at a separator, they share parts, or a part is a label."""
    for separator in _SEPARATORS:
        parts = {name: [part.strip() for part in name.split(separator)] for name in names}
        several = [name for name, own in parts.items() if len(own) > 1]
        counts = Counter(part for own in parts.values() for part in own)
        are_labels = any(part in parts for name in several for part in parts[name])
        if several and (are_labels or len(counts) < len(names) or min(counts.values()) > 1):
            return [
                warning(
                    f"labels such as {several[0]!r} look like several in one text, and train as classes of their own",
                    f"if they are several, give --set data.label_separator={separator!r}",
                )
            ]
    return []


def absent_names(names: Sequence[str]) -> list[Finding]:
    """Find names that rather say that there is no label."""
    found = [name for name in names if name.strip().lower() in _NO_VALUE]
    if not found:
        return []
    told = f"the label {listed(found)} is" if len(found) == 1 else f"the labels {listed(found)} are"
    return [
        warning(
            f"{told} what is often written where there is no value, and a class here",
            "if no label is meant, empty these cells and give --set data.unlabelled=drop",
        )
    ]


def scarce_labels(
    names: Sequence[str], counts: Mapping[str, Sequence[int]], *, is_scored: bool = False
) -> list[Finding]:
    """Find labels that have too few rows: few in training, none in a split that is scored.

    Args:
        names: of the labels.
        counts: split to the rows of each label.
        is_scored: nothing is learned of any split.

    Returns:
        A warning for each split that has such labels, which names them.
    """
    found = []
    for split, rows in counts.items():
        is_learned = split == "train" and not is_scored
        limit = FEW_ROWS if is_learned else 1
        scarce = {name: int(count) for name, count in zip(names, rows, strict=True) if count < limit}
        if scarce and is_learned:
            shown = listed([f"{name} {count}" for name, count in scarce.items()]).replace("'", "")
            found.append(warning(f"fewer than {FEW_ROWS} training rows: {shown}; little can be learned of them"))
        elif scarce:
            found.append(warning(f"no {split} row has the label {listed(list(scarce))}; its scores do not speak of it"))
    return found
