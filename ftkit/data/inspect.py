"""Prepared data as a model will see it: the first sequences with their targets marked, and the report's figures."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ftkit.config.tree import DataConfig, Task
from ftkit.data.arrays import PreparedData, TokenSplit
from ftkit.data.reading.sources import Source
from ftkit.data.reading.values import kind_words
from ftkit.data.table.columns import choose_columns
from ftkit.data.table.fields import field_names, gather
from ftkit.data.table.two_columns import name_two_columns, switch_columns
from ftkit.errors import DataError
from ftkit.units import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ShownSequence:
    """A sequence of tokens as text.

    Attributes:
        split: where it is from.
        number: the place of its text in the split, from 1.
        num_tokens: special tokens included.
        num_targets: the tokens that carry loss, or the label.
        label: the name of its label, those of several, or its number; None for causal-lm.
        parts: texts, and whether their tokens carry loss, in turn.
        window: which of how many windows of its text it is; None: the text is in one.
    """

    split: str
    number: int
    num_tokens: int
    num_targets: int
    label: str | None
    parts: tuple[tuple[str, bool], ...]
    window: tuple[int, int] | None = None


def first_sequences(data: PreparedData, tokenizer: "PreTrainedTokenizerBase", count: int) -> Iterator[ShownSequence]:
    """Yield the first sequences of the training split as the model will see them.

    Args:
        data: of `prepare_data`.
        tokenizer: that the data was prepared with.
        count: how many at most.

    Yields:
        The sequences in its order.
    """
    tokens = data.train
    for place in range(min(count, len(tokens))):
        part = slice(int(tokens.offsets[place]), int(tokens.offsets[place + 1]))
        ids = tokens.tokens[part].tolist()
        is_target = tokens.labels[part] if tokens.labels.dtype == np.bool_ else np.zeros(len(ids), np.bool_)
        text = _text_of(tokens, place)
        yield ShownSequence(
            split="train",
            number=text + 1,
            num_tokens=len(ids),
            num_targets=int(tokens.num_targets[text]),
            label=_label(data, tokens, place),
            parts=tuple(_parts(ids, is_target.tolist(), tokenizer)),
            window=_window(tokens, text, place),
        )


def figures(data: PreparedData) -> dict[str, Any]:
    """Return the report as plain values, for JSON; its findings, which data that is refused has too, are told apart."""
    report = asdict(data.report)
    del report["findings"]
    report["shared"] = {f"{later} with {earlier}": count for (later, earlier), count in data.report.shared.items()}
    return {"task": data.task, "fingerprint": data.fingerprint, **report}


def column_lines(source: Source) -> list[str]:
    """Return a line for each split of a source: its rows, and its columns with what they hold."""
    lines = []
    for role, split in source.splits.items():
        kinds = ((name, gather(split, name)) for name in split.column_names)
        columns = ", ".join(f"{name} ({kind_words(values.type)})" for name, values in kinds if values is not None)
        lines.append(f"{role}: {counted(split.num_rows, 'row')} of {columns}")
    return lines


def guess_task(config: DataConfig, source: Source) -> Task | None:
    """Return the task that the columns of a source are for: labels where there are some; None where nothing fits.

    Args:
        config: whose columns are named, as far as they are.
        source: the dataset.
    """
    if source.is_lines:
        return "causal-lm"
    tasks: tuple[Task, ...] = ("sequence-classification", "causal-lm")
    found = next((task for task in tasks if _fits(config, task, source)), None)
    # A table with columns of 0 and 1 is hardly meant to be read as running text.
    return "sequence-classification" if found == "causal-lm" and switch_columns(source.splits["train"]) else found


def _fits(config: DataConfig, task: Task, source: Source) -> bool:
    train = source.splits["train"]
    named, _ = name_two_columns(config, task, train)
    try:
        choose_columns(named, task, field_names(train, named), source.group_column)
    except DataError:
        return False
    return True


def _text_of(tokens: TokenSplit, place: int) -> int:
    return int(tokens.texts_of(np.array([place]))[0])


def _window(tokens: TokenSplit, text: int, place: int) -> tuple[int, int] | None:
    rows = tokens.rows_of(np.array([text]))
    return (place - int(rows[0]) + 1, len(rows)) if len(rows) > 1 else None


def _label(data: PreparedData, tokens: TokenSplit, place: int) -> str | None:
    if data.labels is None:
        return None
    value = tokens.labels[_text_of(tokens, place)]
    match data.labels.kind:
        case "regression":
            return f"{data.labels.standard.restored(value):g}"
        case "multi":
            return ", ".join(name for name, has in zip(data.labels.names, value, strict=True) if has == 1) or "none"
        case _:
            return data.labels.names[int(value)]


def _parts(ids: list[int], is_target: list[bool], tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[str, bool]]:
    """Yield the text of each run of tokens that carry loss or do not, as it stands in the whole."""
    turns = [place for place in range(1, len(ids)) if is_target[place] != is_target[place - 1]]
    before = ""
    for start, stop in pairwise([0, *turns, len(ids)]):
        whole = str(tokenizer.decode(ids[:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        alone = str(tokenizer.decode(ids[start:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        yield whole[len(before) :] if whole.startswith(before) else alone, is_target[start]
        before = whole
