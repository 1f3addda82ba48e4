"""Texts that a model is asked about, without labels: typed ones, or the rows of any file that training reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ftkit.config.tree import DataConfig
from ftkit.data.arrays import Labels, TokenSplit
from ftkit.data.examples import Examples
from ftkit.data.reading.sources import load_source
from ftkit.data.table.columns import choose_texts
from ftkit.data.table.fields import field_names
from ftkit.data.table.rows import iterate, select_rows, with_plain_line_ends
from ftkit.data.table.two_columns import name_two_columns
from ftkit.data.tokens.encode import encode_texts
from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.data.tokens.windows import check_windows
from ftkit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Asked:
    """Texts to be answered.

    Attributes:
        examples: the texts, and where they came from.
        num_empty: rows that were left out, since they have no text.
    """

    examples: Examples
    num_empty: int = 0


def typed(texts: Sequence[str], place: str) -> Asked:
    """Return texts that were typed or piped in.

    Args:
        texts: one at least.
        place: what they are called, such as `standard input`.

    Raises:
        DataError: none of them holds anything, or one is not UTF-8.
    """
    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:  # Python has decoded bytes that are not UTF-8 to halves of characters
            raise DataError(
                f"{place}, line {number} is not UTF-8; give a file with --dataset, and its encoding with --set "
                "data.encoding=cp1252"
            ) from None
    numbers = [number for number, text in enumerate(texts, start=1) if text.strip()]
    if not numbers:
        raise DataError(f"{place} has no text; give some, one on each line")
    first = pa.array([texts[number - 1] for number in numbers], pa.large_string())
    rows = pa.table({"first": first, "file": [f"{place}, line"] * len(numbers), "row": numbers})
    return Asked(Examples(rows), len(texts) - len(numbers))


def read_texts(config: DataConfig, dataset: str) -> Asked:
    """Read the texts of a file, or of a dataset's test split where it has several splits.

    Args:
        config: the data section of the run; names columns, encoding and separator.
        dataset: as `data.dataset`.

    Raises:
        DataError: as training refuses a file.
    """
    section = config.model_copy(update={"dataset": dataset})
    source = load_source(section)
    split = source.splits.get("test") or source.splits["train"]
    if source.is_lines:
        lines = [text for text, *_ in iterate(pa.table({"text": split.shards[0].table[0]}), "text")]
        return typed([line.rstrip("\r\n") for line in lines], Path(dataset).name)
    named, _ = name_two_columns(section, "sequence-classification", split)
    columns = choose_texts(named, field_names(split, named))
    rows, _ = with_plain_line_ends(select_rows(split, columns))
    return Asked(Examples(rows), split.num_rows - rows.num_rows)


def as_tokens(
    asked: Asked, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, labels: Labels
) -> tuple[TokenSplit, int]:
    """Tokenize texts as training did.

    Args:
        asked: N texts, or pairs.
        tokenizer: the model's.
        config: the data section of the run.
        labels: whose kind decides how the labels that nobody knows are stood in for.

    Returns:
        Sequences with labels of zeros, one for each text or window, and how many texts were cut.
    """
    tokens = TextTokenizer.of(tokenizer, are_characters=config.special_tokens_in_text == "characters")
    rows, num = asked.examples.rows, len(asked.examples)
    zeros: dict[str, NDArray[Any]] = {"single": np.zeros(num, np.int64), "regression": np.zeros(num)}
    zeros["multi"] = np.zeros((num, len(labels.names)), np.int8)
    first = (text for (text,) in iterate(rows, "first"))
    second = (text for (text,) in iterate(rows, "second")) if "second" in rows.column_names else None
    check_windows(config, is_labelled=True, has_pairs=second is not None)
    in_windows = config.long_texts == "windows"
    encoded = encode_texts(first, tokens, config.max_length, second, zeros[labels.kind], in_windows=in_windows)
    return encoded.split, encoded.losses.num_truncated
