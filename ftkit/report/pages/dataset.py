"""The page of a dataset: what `ftkit data` prints, for whoever reads it in a browser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftkit.report.pages.templates import fill_page

_MOST_CLASSES = 200
"""More than a page can show; `--json` has them all."""


@dataclass(frozen=True)
class Told:
    """Something that is wrong with data, or to be known of it.

    Attributes:
        severity: `error`, `warning` or `note`.
        text: what.
        cure: what helps; empty where there is nothing to do.
    """

    severity: str
    text: str
    cure: str


@dataclass(frozen=True)
class ShownText:
    """A sequence as a model sees it.

    Attributes:
        heading: split, number, tokens and label.
        parts: texts, and whether they carry loss, in turn.
    """

    heading: str
    parts: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Alike:
    """Two texts that are nearly the same.

    Attributes:
        heading: their splits, and how much they have in common.
        texts: where each stands, and what it says.
    """

    heading: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Dataset:
    """A dataset as far as it is known: of one that is refused its columns and findings.

    Attributes:
        name: as it was named.
        lines: columns and splits, as the terminal shows them.
        splits: the names of the splits.
        classes: name of each class to its rows in each split.
        lengths: split to upper bounds of tokens and the texts up to there.
        sequences: the first ones.
        findings: the worst first.
        near: examples of texts that are nearly the same.
    """

    name: str
    lines: Sequence[str]
    splits: Sequence[str]
    classes: Sequence[tuple[str, Sequence[int]]]
    lengths: Mapping[str, Sequence[tuple[int, int]]]
    sequences: Sequence[ShownText]
    findings: Sequence[Told]
    near: Sequence[Alike] = ()


def data_page(dataset: Dataset) -> str:
    """Return a dataset as a page that asks the network for nothing and whose texts are all escaped."""
    return fill_page(
        "dataset",
        data=dataset,
        classes=dataset.classes[:_MOST_CLASSES],
        bars={split: _shares(bars) for split, bars in dataset.lengths.items()},
    )


def _shares(bars: Sequence[tuple[int, int]]) -> list[tuple[int, int, float]]:
    """Return bounds and counts with the length of their bars, in per cent of the longest."""
    most = max((count for _, count in bars), default=1) or 1
    return [(bound, count, 100 * count / most) for bound, count in bars]
