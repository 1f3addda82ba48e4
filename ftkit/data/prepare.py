"""From a configuration to token arrays: load, choose, check, split, draw, tokenise, report."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ftkit.config.tree import DataConfig, Task
from ftkit.data import encode
from ftkit.data.arrays import PreparedData, TokenSplit, fingerprint
from ftkit.data.columns import Columns, choose_columns
from ftkit.data.draft import Draft, draw, draw_rng, label, make_splits, sample_limit, select
from ftkit.data.fields import field_names
from ftkit.data.report import QUANTILES, DataReport
from ftkit.data.rows import iterate, keys
from ftkit.data.sources import Source, load_source
from ftkit.data.splits import draw_stratified
from ftkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_data(
    config: DataConfig,
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    model_label_names: tuple[str, ...] | None = None,
) -> PreparedData:
    """Turn a dataset into token arrays.

    Args:
        config: which texts, columns and splits.
        task: what they are for.
        tokenizer: the model's.
        seed: of made splits and of draws; nothing else is left to chance.
        model_label_names: names that a fine-tuned model carries, in its order; None for a model without a head.

    Returns:
        The splits, their label names, fingerprint and report.

    Raises:
        DataError: data that is missing, malformed or not for this task; one sentence that names the cure.
        DependencyError: the demo's package is missing.
    """
    source = load_source(config)
    if source.is_lines and task == "sequence-classification":
        raise DataError(f"{source.name} is text without labels; give a CSV, JSONL or Parquet file with a label column")
    train = source.splits["train"]
    columns = choose_columns(config, task, field_names(train), source.group_column)
    columns = replace(columns, kind="lines") if source.is_lines else columns
    draft = select(source, columns)
    if columns.label is not None:
        label(draft, train, columns.label, config, model_label_names)
    make_splits(draft, columns, config, seed)
    if not columns.is_running:  # there a sequence is a block of tokens, to be drawn when it is cut
        draw(draft, config, seed)
    encoded = _encode_all(draft, columns, tokenizer, config, seed)
    splits = {split: result.split for split, result in encoded.items()}
    ordered = (splits["train"], splits.get("validation"), splits.get("test"))
    report = _report(draft, encoded, source, columns)
    return PreparedData(task, *ordered, draft.names, fingerprint(ordered, draft.names), report)


def _encode_all(
    draft: Draft, columns: Columns, tokenizer: "PreTrainedTokenizerBase", config: DataConfig, seed: int
) -> dict[str, encode.Encoded]:
    encoded: dict[str, encode.Encoded] = {}
    for split in [split for split in ("train", "validation", "test") if split in draft.rows]:
        try:
            encoded[split] = _encode(draft, split, columns, tokenizer, config.max_length)
        except DataError as error:
            raise DataError(f"{split} split: {error}") from None
        limit, num_blocks = sample_limit(config, split), len(encoded[split].split)
        if columns.is_running and limit is not None and limit < num_blocks:
            chosen = draw_stratified(np.zeros(num_blocks, dtype=np.int64), limit, draw_rng(seed))
            encoded[split] = encode.take_blocks(encoded[split], chosen)
            draft.origins[split] += f", {limit:,} of {num_blocks:,} drawn"
    return encoded


def _encode(
    draft: Draft, split: str, columns: Columns, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> encode.Encoded:
    rows = draft.rows[split]
    first = (text for (text,) in iterate(rows, "first"))
    if columns.kind == "labelled":
        second = (text for (text,) in iterate(rows, "second")) if columns.second is not None else None
        return encode.encode_texts(first, tokenizer, max_length, second, draft.labels[split])
    if columns.is_running:
        return encode.encode_documents(first, tokenizer, max_length, columns.kind == "lines")
    if columns.kind == "chat":
        return encode.encode_pieces(_conversations(rows, tokenizer), tokenizer, max_length)
    pairs = ([(prompt, False), (completion, True)] for prompt, completion in iterate(rows, "first", "second"))
    begin, end = encode.begin_tokens(tokenizer), encode.end_tokens(tokenizer)
    return encode.encode_pieces(pairs, tokenizer, max_length, begin, end)


def _conversations(rows: pa.Table, tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[encode.Piece]]:
    for messages, row in iterate(rows, "first", "row"):
        yield encode.chat_pieces(_checked(messages, row), tokenizer, row)


def _checked(messages: list[Any], row: int) -> list[encode.Message]:
    for message in messages:
        if message is None or not isinstance(message["role"], str) or message["content"] is None:
            raise DataError(f"row {row} has a message without role or content; give every message both")
    if not any(message["role"] == "assistant" for message in messages[1:]):
        roles = ", ".join(message["role"] for message in messages) or "no messages"
        raise DataError(
            f"row {row} has no assistant's answer (its roles: {roles}), so there is nothing to learn from; leave it out"
        )
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _report(draft: Draft, encoded: Mapping[str, encode.Encoded], source: Source, columns: Columns) -> DataReport:
    splits = {split: result.split for split, result in encoded.items()}
    num_labels = 0 if draft.names is None else len(draft.names)
    counts = {split: np.bincount(draft.labels[split], minlength=num_labels) for split in splits if num_labels}
    return DataReport(
        source=source.name,
        columns=columns.roles,
        origins={split: draft.origins[split] for split in splits},
        rows={split: len(tokens) for split, tokens in splits.items()},
        label_names=draft.names,
        label_counts={split: tuple(count.tolist()) for split, count in counts.items()},
        dropped_duplicates=draft.num_duplicates,
        dropped_empty=draft.num_empty,
        dropped_unlabelled=draft.num_unlabelled,
        dropped_without_targets=sum(result.num_dropped for result in encoded.values()),
        truncated_share={split: encoded[split].num_truncated / len(splits[split]) for split in splits},
        length_quantiles={split: _quantiles(tokens) for split, tokens in splits.items()},
        leak_share=_leak_share(draft, columns),
        files=source.files,
        unread=source.unread,
    )


def _quantiles(split: TokenSplit) -> tuple[int, ...]:
    return tuple(np.quantile(split.lengths, QUANTILES, method="inverted_cdf").astype(int).tolist())


def _leak_share(draft: Draft, columns: Columns) -> float | None:
    if columns.kind == "lines" or "test" not in draft.rows:
        return None
    return float(np.isin(keys(draft.rows["test"]), keys(draft.rows["train"])).mean())
