"""Splits on their way from tables to tokens: selected, made where they were not found, drawn from."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.config.tree import DataConfig, LabelKind
from ftkit.data.findings import Finding, note, warning
from ftkit.data.near.apart import apart
from ftkit.data.reading.sources import Source
from ftkit.data.reading.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    Shares,
    assign_contiguous,
    assign_grouped,
    assign_stratified,
    draw_stratified,
    strata,
)
from ftkit.data.spill import taken
from ftkit.data.table.columns import Columns
from ftkit.data.table.rows import count_half_pairs, group_numbers, keys, select_rows, with_plain_line_ends
from ftkit.errors import DataError
from ftkit.units import counted

_DRAW_STREAM = 1  # another stream of chance than the one that makes splits


@dataclass
class Draft:
    """Splits as far as they are made, and what was left out so far.

    Attributes:
        rows: split to table.
        labels: split to label numbers, int64 [N], zeros for causal-lm; of several labels a text which it has, int8
            [N, C] of 0 and 1; numbers to predict, float64 [N].
        origins: split to how it came about.
        kind: of the labels; None for causal-lm.
        kind_reason: why it is this kind.
        names: the names of the labels, or None.
        num_empty: rows without text.
        num_duplicates: rows with the text of an earlier one.
        num_near: rows with nearly the text of an earlier one that were left out.
        num_unlabelled: rows without a label that were left out.
        num_line_ends: carriage returns taken out before line feeds.
        findings: what else a user should know.
        made: the splits that were made of the training split, and that one.
        may_lack_labels: the labels are those of a model that is scored, and the data need not have all of them.
    """

    rows: dict[str, pa.Table] = field(default_factory=dict)
    labels: dict[str, NDArray[Any]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    kind: LabelKind | None = None
    kind_reason: str = ""
    names: tuple[str, ...] | None = None
    num_empty: int = 0
    num_duplicates: int = 0
    num_near: int = 0
    num_unlabelled: int = 0
    num_line_ends: int = 0
    findings: list[Finding] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    may_lack_labels: bool = False
    _hashes: dict[str, NDArray[np.uint64]] = field(default_factory=dict)  # of texts that were hashed already

    def keep(self, split: str, places: NDArray[np.int64]) -> None:
        """Keep the rows of a split at `places`, int64 [rows to keep], ascending."""
        self.rows[split] = taken(self.rows[split], places)
        self.labels[split] = self.labels[split][places]
        if split in self._hashes:
            self._hashes[split] = self._hashes[split][places]

    def put(self, split: str, of: str, places: NDArray[np.int64], origin: str) -> None:
        """Make a split of rows of another one, or of the same.

        Args:
            split: the new one.
            of: the other one.
            places: int64 [rows to take], ascending.
            origin: how the new one comes about.
        """
        self.rows[split], self.labels[split], self.origins[split] = self.rows[of], self.labels[of], origin
        if of in self._hashes:
            self._hashes[split] = self._hashes[of]
        self.keep(split, places)

    def hashes(self, split: str) -> NDArray[np.uint64]:
        """Return a number for the texts of each row of a split, uint64 [N]: equal texts, equal numbers."""
        if split not in self._hashes:
            self._hashes[split] = keys(self.rows[split])
        return self._hashes[split]

    def discard(self, split: str) -> None:
        """Forget a split."""
        del self.rows[split], self.labels[split], self.origins[split]
        self._hashes.pop(split, None)


def select(source: Source, columns: Columns) -> Draft:
    """Take the chosen columns of the splits that there are.

    Args:
        source: the dataset.
        columns: the chosen columns.

    Returns:
        Splits without labels.

    Raises:
        DataError: a column is missing in a split, or is not what it is chosen for.
    """
    draft = Draft()
    for role, split in source.splits.items():
        rows = select_rows(split, columns, may_lack_label=role == "test")
        rows, num_line_ends = with_plain_line_ends(rows)
        draft.num_line_ends += num_line_ends
        if columns.kind == "labelled" and (num_half := count_half_pairs(rows)):
            told = f"rows of the {split.name} split with one text of the pair alone: {num_half:,}"
            draft.findings.append(warning(told, "they train as that text beside an empty one"))
        draft.rows[role], draft.labels[role] = rows, np.zeros(rows.num_rows, dtype=np.int64)
        draft.num_empty += split.num_rows - rows.num_rows
        draft.origins[role] = "as found" if split.name == role else f"the split {split.name!r}"
    return draft


def make_splits(draft: Draft, columns: Columns, config: DataConfig, seed: int) -> None:
    """Make validation and test of the training split where they were not found.

    Rows with the text of an earlier row are left out first, and those that nearly have it where the configuration says
    so: no text shall be in two of these splits. Classes that no two rows share are refused, and where all splits were
    found there is a warning.

    Args:
        draft: gets the splits.
        columns: whose group, if any, keeps rows together; the lines of one text are split in whole pieces.
        config: `validation_share`, `test_share` and what becomes of texts that are nearly the same.
        seed: the only source of chance.

    Raises:
        DataError: shares, rows, groups and labels do not allow it.
    """
    validation = 0.0 if "validation" in draft.rows else config.validation_share
    shares = Shares(validation, 0.0 if "test" in draft.rows else config.test_share)
    if shares == Shares(0.0, 0.0):
        if not draft.may_lack_labels and (alone := _labels_of_their_own(draft)):
            draft.findings.append(warning(*alone))
        return
    if columns.kind != "lines":
        _drop_duplicates(draft)
        _drop_near(draft, config)
    labels = draft.labels["train"]
    try:
        _assign(draft, shares, columns, seed)
        _check_labels(draft, labels, shares)
    except DataError as error:
        repeating = {
            ("row repeats an earlier text", "rows repeat an earlier text"): draft.num_duplicates,
            ("row nearly repeats one", "rows nearly repeat one"): draft.num_near,
        }
        left_out = ", ".join(counted(count, *words) for words, count in repeating.items() if count)
        if not left_out:
            raise
        raise DataError(f"{error} (left out: {left_out})") from None


def draw(draft: Draft, config: DataConfig, seed: int) -> None:
    """Draw as many rows as the configuration wants at most, every label by its share.

    Args:
        draft: keeps what is drawn.
        config: `max_train_samples` and `max_eval_samples`.
        seed: the only source of chance.
    """
    for split, rows in draft.rows.items():
        limit = sample_limit(config, split)
        if limit is not None and limit < rows.num_rows:
            draft.keep(split, draw_stratified(strata(draft.labels[split]), limit, draw_rng(seed)))
            draft.origins[split] += f", {limit:,} of {rows.num_rows:,} drawn"


def count_labels(labels: NDArray[Any], num_labels: int) -> NDArray[np.int64]:
    """Return how many rows have each label, int64 [C]."""
    return np.bincount(labels, minlength=num_labels) if labels.ndim == 1 else (labels == 1).sum(axis=0)


def sample_limit(config: DataConfig, split: str) -> int | None:
    """Return how many sequences a split may have, or None."""
    return config.max_train_samples if split == "train" else config.max_eval_samples


def draw_rng(seed: int) -> np.random.Generator:
    """Return the chance that draws samples."""
    return np.random.default_rng([seed, _DRAW_STREAM])


def _assign(draft: Draft, shares: Shares, columns: Columns, seed: int) -> None:
    rows, labels = draft.rows["train"], draft.labels["train"]
    if columns.kind == "lines":
        parts, how = assign_contiguous(rows.num_rows, shares), "one piece of the text"
    elif columns.group is not None:
        parts = assign_grouped(group_numbers(rows, columns.group), shares, seed)
        how = f"made by {columns.group!r}, none of which is in two splits"
    else:
        parts = assign_stratified(labels, shares, seed)
        spread = "numbers from all over their range" if draft.kind == "regression" else "labels by their shares"
        how = "drawn by the seed" if draft.names is None else f"drawn by the seed, {spread}"
    for split, part in (("validation", VALIDATION), ("test", TEST), ("train", TRAIN)):
        if part == TRAIN or (parts == part).any():
            draft.put(split, "train", np.flatnonzero(parts == part), how)
            draft.made.add(split)


def _drop_duplicates(draft: Draft) -> None:
    hashes = draft.hashes("train")
    _, first = np.unique(hashes, return_index=True)
    draft.num_duplicates = len(hashes) - len(first)
    if draft.num_duplicates:
        draft.keep("train", np.sort(first))


def _drop_near(draft: Draft, config: DataConfig) -> None:
    if config.near_duplicates == "keep":
        return
    assert config.near_duplicate_similarity is not None, "refused with the configuration"
    places, is_whole = apart(draft.rows["train"], config.near_duplicate_similarity)
    draft.num_near = draft.rows["train"].num_rows - len(places)
    draft.keep("train", places)
    if not is_whole:
        told = "many texts share the same rare pairs of words, and not all of them were compared"
        draft.findings.append(note(f"{told}: some that are nearly the same may be in two splits"))


def _labels_of_their_own(draft: Draft) -> tuple[str, str] | None:
    """Return what is wrong with classes that no two rows of all splits share, and its cure; None of others."""
    if draft.kind != "single" or draft.names is None:
        return None
    counts = np.array([count_labels(labels, len(draft.names)) for labels in draft.labels.values()]).sum(axis=0)
    if not counts.max() == 1 < counts.sum():
        return None
    told = f"each of the {counts.sum():,} rows has a label of its own, such as {draft.names[0]!r}"
    return (
        f"{told}, so nothing can be learned",
        "name another column with --label-column, or write numbers to predict without units",
    )


def _check_labels(draft: Draft, labels: NDArray[Any], shares: Shares) -> None:
    """Refuse made splits that cannot be scored or that training cannot serve."""
    if draft.names is None or draft.kind == "regression":
        return
    counts = count_labels(labels, len(draft.names))
    num_labels = int((counts > 0).sum()) if draft.kind == "single" else 1
    if alone := _labels_of_their_own(draft):
        raise DataError("; ".join(alone))
    for split, share in (("validation", shares.validation), ("test", shares.test)):
        size = (draft.rows[split].num_rows if split in draft.rows else 0) if share > 0 else num_labels
        if size < num_labels:
            raise DataError(
                f"data.{split}_share={share} of {len(labels)} rows is {size} for {num_labels} labels, too few to score "
                f"them; raise it, give more rows, or make no such split with --set data.{split}_share=0"
            )
    lost = np.flatnonzero((counts > 0) & (count_labels(draft.labels["train"], len(draft.names)) == 0))
    if len(lost):
        raise DataError(
            f"label {draft.names[lost[0]]!r} occurs only in groups that validate or test, so nothing can learn it; "
            "choose another seed, smaller shares, or a finer data.group_column"
        )
