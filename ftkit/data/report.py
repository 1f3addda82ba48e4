"""The data's own report: what was found, dropped and cut, in numbers and in lines."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ftkit.config.tree import LabelKind
from ftkit.data.findings import Finding, by_severity, listed, note, warning
from ftkit.data.near.told import NearTexts
from ftkit.units import counted

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
"""The quantiles of sequence lengths that a report names."""
_TITLES = ("title", "subject", "headline", "heading", "summary")
"""Columns that have a part of a text whose body is in another."""


@dataclass(frozen=True)
class DataReport:
    """All that is known of the data before it trains; mappings go from a split's name to its figure.

    Attributes:
        source: the dataset as it was named.
        columns: role (text, pair, label, prompt, completion, messages, group) to column.
        origins: how each split came about.
        rows: sequences per split.
        label_kind: what a label is, or None.
        label_reason: why it is taken for that.
        label_names: the names of the labels, or None.
        label_counts: rows per label, in the order of `label_names`; empty for causal-lm and for numbers.
        numbers: of numbers to predict their least, greatest, mean and standard deviation.
        dropped_duplicates: rows left out because an earlier one has the same text (only where splits are made).
        dropped_near: rows left out because an earlier one has nearly the same text (`data.near_duplicates`).
        dropped_empty: rows left out because they have no text.
        dropped_unlabelled: rows left out because they have no label.
        dropped_without_targets: causal-lm sequences left out because no target lies within max_length.
        truncated_share: the share of sequences that were cut at max_length.
        length_quantiles: tokens of a sequence at the quantiles `QUANTILES`.
        files: the files that each split is read from, in order, with their rows and what else is to tell of them.
        unread: what lies beside those files and is not read.
        ignored_columns: columns of the training split that nothing reads.
        prompt: the template that makes prompts of several columns, or None.
        as_chat: prompts and completions are written as a chat.
        num_line_ends: carriage returns taken out before line feeds.
        length_histogram: texts by their tokens before the cut: upper bound and count, ascending.
        num_targets: what carries loss: labels, or tokens.
        findings: what else its owner should know.
        shared: (later split, earlier split) to the rows of the later one whose text is in the earlier one too.
        repeated: split to its rows that have the text of an earlier one of it.
        near: rows whose text is nearly that of another; empty where nobody asked for them.
    """

    source: str
    columns: Mapping[str, str]
    origins: Mapping[str, str]
    rows: Mapping[str, int]
    label_kind: LabelKind | None
    label_reason: str
    label_names: tuple[str, ...] | None
    label_counts: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, tuple[float, float, float, float]]
    dropped_duplicates: int
    dropped_empty: int
    dropped_unlabelled: int
    dropped_without_targets: int
    truncated_share: Mapping[str, float]
    length_quantiles: Mapping[str, tuple[int, ...]]
    dropped_near: int = 0
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    ignored_columns: tuple[str, ...] = ()
    prompt: str | None = None
    as_chat: bool = False
    num_line_ends: int = 0
    length_histogram: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    num_targets: Mapping[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    shared: Mapping[tuple[str, str], int] = field(default_factory=dict)
    repeated: Mapping[str, int] = field(default_factory=dict)
    near: tuple[NearTexts, ...] = ()

    @property
    def example(self) -> Literal["text", "pair", "chat"]:
        """An example of the data: one text, two of them, or a chat in the tokenizer's template."""
        if self.as_chat or "messages" in self.columns:
            return "chat"
        return "pair" if "pair" in self.columns else "text"

    def lines(self) -> list[str]:
        """Return the report as short lines for a terminal, what its owner should know at the end."""
        return [*self.summary(), *(finding.line() for finding in by_severity(self.all_findings()))]

    def summary(self) -> list[str]:
        """Return the columns, the splits and what was left out as short lines for a terminal."""
        columns = ", ".join(f"{role} {name!r}" for role, name in self.columns.items())
        return [
            (f"data {self.source}: {columns}" if columns else f"data {self.source}") + self._kind_words(),
            *(f"{split} is read from {_some(names)}" for split, names in self.files.items()),
            *([f"not read: {_some(self.unread)}"] if self.unread else []),
            *self._prompt_lines(),
            *(self._split_line(split) for split in self.rows),
            *self._dropped_lines(),
        ]

    def all_findings(self) -> tuple[Finding, ...]:
        """Return all that its owner should know, with what follows from the figures."""
        found = [
            warning(
                f"{count / self.rows[later]:.1%} of the {later} texts are in the "
                f"{'training' if earlier == 'train' else earlier} split too ({counted(count, 'row')}); "
                "scores will flatter"
            )
            for (later, earlier), count in self.shared.items()
        ]
        found += [
            note(f"{split}: {counted(count, 'row has', 'rows have')} the text of an earlier one")
            for split, count in self.repeated.items()
        ]
        found += [one.finding() for one in self.near]
        if self.ignored_columns:
            found.append(note(f"columns that nothing reads: {listed(self.ignored_columns)}", self._title_cure()))
        if self.num_line_ends:
            found.append(note(f"{counted(self.num_line_ends, 'line end CR LF is', 'line ends CR LF are')} read as LF"))
        return (*found, *self.findings)

    def _title_cure(self) -> str:
        """Return what lets a classifier read the titles of its texts, where they lie in a column of their own."""
        titles = [name for name in self.ignored_columns if name.strip().lower() in _TITLES]
        if not titles or set(self.columns) != {"text", "label"}:
            return ""
        text, pair = (shlex.quote(name) for name in (self.columns["text"], titles[0]))
        return f"to read both: --set data.text_column={text} --set data.text_pair_column={pair}"

    def _prompt_lines(self) -> list[str]:
        if self.prompt is None and not self.as_chat:
            return []
        prompt = "prompt" if self.prompt is None else f"prompt {self.prompt!r}"
        how = "in the tokenizer's chat template" if self.as_chat else "as it is"
        return [f"{prompt}, {how} (data.prompt_template, data.prompt_format)"]

    def _kind_words(self) -> str:
        if self.label_kind is None or self.label_names is None:
            return ""
        num = len(self.label_names)
        kind = {
            "single": f"one of {counted(num, 'class', 'classes')}",
            "multi": f"any of {counted(num, 'label')}",
            "regression": "a number to predict",
        }[self.label_kind]
        return f": {kind} ({self.label_reason})"

    def _split_line(self, split: str) -> str:
        shortest, median, _, high, longest = self.length_quantiles[split]
        parts = [
            f"{split}: {counted(self.rows[split], 'sequence')} ({self.origins[split]})",
            *self._label_parts(split),
        ]
        parts.append(f"{shortest} to {longest} tokens, median {median}, 99 % within {high}")
        if self.truncated_share[split] > 0:
            parts.append(f"{self.truncated_share[split]:.1%} cut at max_length")
        return "; ".join(parts)

    def _label_parts(self, split: str) -> list[str]:
        if split in self.numbers:
            least, greatest, mean, deviation = self.numbers[split]
            return [f"from {least:g} to {greatest:g}, mean {mean:.4g}, deviation {deviation:.4g}"]
        if self.label_names is None:
            return []
        counts = list(zip(self.label_names, self.label_counts[split], strict=True))
        shown = ", ".join(f"{name} {count:,}" for name, count in counts[:8])
        return [shown + (f", and {counted(len(counts) - 8, 'more label')}" if len(counts) > 8 else "")]

    def _dropped_lines(self) -> list[str]:
        reasons = {
            "with the text of an earlier row": self.dropped_duplicates,
            "with nearly the text of an earlier row": self.dropped_near,
            "without text": self.dropped_empty,
            "without a label": self.dropped_unlabelled,
            "without a target within max_length": self.dropped_without_targets,
        }
        parts = [f"{count:,} {reason}" for reason, count in reasons.items() if count]
        return [f"left out: {', '.join(parts)}"] if parts else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", and {len(names) - 8:,} more" if len(names) > 8 else "")


def histogram(lengths: NDArray[np.integer[Any]]) -> tuple[tuple[int, int], ...]:
    """Count texts by their tokens, in steps of a half and a third: up to 1, 2, 3, 4, 6, 8, 12, 16, ... tokens.

    Args:
        lengths: of whole numbers, [N].

    Returns:
        Upper bound and count, from the shortest text's to the longest's.
    """
    longest = int(lengths.max(initial=1))
    bounds = sorted({bound << power for power in range(longest.bit_length() + 1) for bound in (2, 3)} | {1})
    counts = np.bincount(np.searchsorted(bounds, lengths, side="left"), minlength=len(bounds)).tolist()
    filled = [place for place, count in enumerate(counts) if count]
    first, last = (filled[0], filled[-1]) if filled else (0, -1)
    return tuple(zip(bounds[first : last + 1], counts[first : last + 1], strict=True))
