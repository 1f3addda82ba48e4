"""From a configuration to token arrays: load, choose, check, split, draw, tokenize, report."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.config.tree import SPLITS, DataConfig, Task
from ftkit.data.arrays import Labels, PreparedData, TokenSplit, fingerprint
from ftkit.data.chat.conversations import Conversations, take_template
from ftkit.data.draft import Draft, count_labels, draw, draw_rng, make_splits, sample_limit, select
from ftkit.data.examples import Examples
from ftkit.data.findings import Finding, kept, listed, warning
from ftkit.data.idle_keys import idle_for_source, idle_keys
from ftkit.data.labels.checks import (
    absent_names,
    alike_names,
    joined_names,
    repeated_texts,
    scarce_labels,
    shared_texts,
)
from ftkit.data.labels.labelling import label
from ftkit.data.near.told import near_texts
from ftkit.data.reading.shards import Split
from ftkit.data.reading.sources import Source, load_source
from ftkit.data.reading.splits import draw_stratified
from ftkit.data.report import QUANTILES, DataReport, histogram
from ftkit.data.standard import AS_THEY_ARE, Standard, standard_of
from ftkit.data.table.columns import Columns, choose_columns, forgotten
from ftkit.data.table.fields import field_names, nested_names
from ftkit.data.table.rows import iterate
from ftkit.data.table.two_columns import name_two_columns, switch_columns
from ftkit.data.tokens import encode
from ftkit.data.tokens.kept import TokenStore
from ftkit.data.tokens.losses import findings_of_losses, spelled
from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.data.tokens.windows import check_windows
from ftkit.errors import DataError, NoLabelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_data(  # noqa: PLR0913  # each is decided by one caller alone
    config: DataConfig,
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    model_label_names: tuple[str, ...] | None = None,
    source: Source | None = None,
    *,
    may_lack_labels: bool = False,
    store: TokenStore | None = None,
    tells_near: bool = False,
) -> PreparedData:
    """Turn a dataset into token arrays.

    Args:
        config: which texts, columns and splits.
        task: what they are for.
        tokenizer: the model's.
        seed: of made splits and of draws; nothing else is left to chance.
        model_label_names: names that a fine-tuned model carries, in its order; None for a model without a head.
        source: the dataset, where it is loaded already.
        may_lack_labels: the model is only scored, and the data need not have every label that it knows.
        store: keeps tokens for the next time; None: nothing is kept.
        tells_near: the report tells texts that are nearly the same, too.

    Returns:
        The splits, their label names, fingerprint and report.

    Raises:
        DataError: data that is missing, malformed or not for this task; one sentence that names the cure.
        DependencyError: the demo's package is missing.
    """
    source = source or load_source(config)
    has_template = take_template(config, tokenizer)
    config, columns, draft = _drafted(
        config, task, seed, model_label_names, source, has_template=has_template, may_lack_labels=may_lack_labels
    )
    with kept(draft.findings):
        standard = _standard(draft, config)
        tokens = TextTokenizer.of(tokenizer, are_characters=config.special_tokens_in_text == "characters", store=store)
        encoded, findings = _encode_all(draft, columns, tokens, config, seed)
    train = source.splits["train"]
    ignored = tuple(name for name in train.column_names if not any(_is_of(used, name) for used in columns.used))
    if task == "causal-lm" and (names := forgotten(columns, train.column_names)):
        cure = "leave the names of columns out, or write both into --prompt-template, such as '{instruction} {input}'"
        findings.append(warning(f"{listed(names)} belongs to what is asked, and is not read", cure))
    report = _report(draft, encoded, source, columns, ignored, findings)
    if tells_near and config.near_duplicate_similarity is not None and columns.kind != "lines":
        hashes = {split: draft.hashes(split) for split in draft.rows}
        parted = draft.made if config.near_duplicates == "keep" else set()
        near = near_texts(draft.rows, hashes, config.near_duplicate_similarity, parted)
        report = replace(report, near=near)
    splits = {split: _learned(result.split, standard) for split, result in encoded.items()}
    ordered = (splits["train"], splits.get("validation"), splits.get("test"))
    labels = None if draft.kind is None or draft.names is None else Labels(draft.kind, draft.names, standard)
    scored = draft.rows if may_lack_labels else draft.rows.keys() - {"train"}
    examples = {split: Examples(draft.rows[split]) for split in scored} if labels is not None else {}
    prepared = PreparedData(task, *ordered, labels, fingerprint(ordered, draft.names), report, examples)
    pa.default_memory_pool().release_unused()
    return prepared


def check_rows(config: DataConfig, task: Task, seed: int) -> dict[str, int]:
    """Read a dataset as far as that goes without a tokenizer: files, columns, labels and splits.

    Args:
        config: which texts, columns and splits.
        task: what they are for.
        seed: of made splits.

    Returns:
        Split to its texts; of running text, whose sequences are blocks of tokens, the documents.

    Raises:
        DataError, DependencyError: as `prepare_data`; a chat template is taken to be there.
    """
    _, _, draft = _drafted(config, task, seed, None, load_source(config), has_template=True)
    return {split: len(rows) for split, rows in draft.rows.items()}


def _drafted(  # noqa: PLR0913  # as prepare_data
    config: DataConfig,
    task: Task,
    seed: int,
    model_label_names: tuple[str, ...] | None,
    source: Source,
    *,
    has_template: bool,
    may_lack_labels: bool = False,
) -> tuple[DataConfig, Columns, Draft]:
    """Choose columns and rows of a dataset, and check and split them."""
    if source.is_lines and task == "sequence-classification":
        raise DataError(f"{source.name} is text without labels; give a CSV, JSONL or Parquet file with a label column")
    train = source.splits["train"]
    config, guesses = name_two_columns(config, task, train)
    names = field_names(train, config)
    with _switches_told(train):
        columns = choose_columns(
            config, task, names, source.group_column, has_template=has_template, nested=nested_names(train)
        )
    columns = replace(columns, kind="lines") if source.is_lines else columns
    check_windows(config, is_labelled=columns.kind == "labelled", has_pairs=columns.second is not None)
    draft = select(source, columns)
    draft.may_lack_labels = may_lack_labels
    draft.findings += [*guesses, *idle_keys(config, columns)]
    # Who scores another dataset has the keys of the one that trained.
    draft.findings += [] if may_lack_labels else idle_for_source(config, source)
    with kept(draft.findings):
        if columns.label is not None:
            label(draft, train, columns, config, model_label_names)
            draft.findings += _name_findings(draft)
        make_splits(draft, columns, config, seed)
        if not columns.is_running:  # there a sequence is a block of tokens, to be drawn when it is cut
            draw(draft, config, seed)
    return config, columns, draft


@contextmanager
def _switches_told(train: Split) -> Iterator[None]:
    """Add to a refusal for want of a label the columns of 0 and 1, which may be a label each."""
    try:
        yield
    except NoLabelError as error:
        names = switch_columns(train)
        if not names:
            raise
        given = f"--set data.label_columns='[{', '.join(names)}]'"
        raise DataError(f"{error}; if {', '.join(names)}, which hold 0 and 1, are a label each: {given}") from None


def _standard(draft: Draft, config: DataConfig) -> Standard:
    """Return how numbers to predict are brought to mean 0 and deviation 1, where the configuration asks for it."""
    if not config.standardize_targets:
        return AS_THEY_ARE
    if draft.kind != "regression":
        raise DataError(
            f"data.standardize_targets is for numbers to predict, and these labels are {draft.kind or 'tokens'} "
            f"({draft.kind_reason or 'causal-lm'}); leave it out, or give --set data.label_kind=regression"
        )
    return standard_of(draft.labels["train"], (draft.names or ("",))[0])


def _learned(split: TokenSplit, standard: Standard) -> TokenSplit:
    return split if standard == AS_THEY_ARE else replace(split, labels=standard.standardized(split.labels))


def _encode_all(
    draft: Draft, columns: Columns, tokens: TextTokenizer, config: DataConfig, seed: int
) -> tuple[dict[str, encode.Encoded], list[Finding]]:
    chats = Conversations(config, columns, tokens)
    encoded: dict[str, encode.Encoded] = {}
    for split in [split for split in SPLITS if split in draft.rows]:
        try:
            encoded[split] = _encode(draft, split, columns, chats, config)
        except DataError as error:
            raise DataError(f"{split} split: {error}") from None
        limit, num_blocks = sample_limit(config, split), len(encoded[split].split)
        if columns.is_running and limit is not None and limit < num_blocks:
            chosen = draw_stratified(np.zeros(num_blocks, dtype=np.int64), limit, draw_rng(seed))
            encoded[split] = encode.take_blocks(encoded[split], chosen)
            draft.origins[split] += f", {limit:,} of {num_blocks:,} drawn"
    draft.num_line_ends += chats.seen.num_line_ends
    findings = findings_of_losses(encoded, config.max_length, tokens)
    if chats.rendering.num_spelled:
        findings.append(spelled(chats.rendering.num_spelled, are_characters=tokens.special.are_characters))
    return encoded, [*draft.findings, *chats.findings(), *findings]


def _encode(draft: Draft, split: str, columns: Columns, chats: Conversations, config: DataConfig) -> encode.Encoded:
    rows, tokenizer, max_length = draft.rows[split], chats.tokenizer, config.max_length
    first = (text for (text,) in iterate(rows, "first"))
    if columns.kind == "labelled":
        second = (text for (text,) in iterate(rows, "second")) if columns.second is not None else None
        in_windows = config.long_texts == "windows"
        return encode.encode_texts(first, tokenizer, max_length, second, draft.labels[split], in_windows=in_windows)
    if columns.is_running:
        return encode.encode_documents(first, tokenizer, max_length, is_lines=columns.kind == "lines")
    if columns.kind == "chat" or columns.as_chat:
        return encode.encode_pieces(chats.pieces(rows), tokenizer, max_length, is_whole=True)
    loses_all = config.loss_on == "everything"
    pairs = ([(prompt, loses_all), (completion, True)] for prompt, completion in iterate(rows, "first", "second"))
    return encode.encode_pieces(pairs, tokenizer, max_length, is_whole=False)


def _is_of(used: str, column: str) -> bool:
    """Tell whether a column is read: by its name, or by that of a field inside it."""
    return used == column or used.startswith(f"{column}.")


def _report(
    draft: Draft,
    encoded: Mapping[str, encode.Encoded],
    source: Source,
    columns: Columns,
    ignored: tuple[str, ...],
    findings: list[Finding],
) -> DataReport:
    splits = {split: result.split for split, result in encoded.items()}
    hashes = {} if columns.kind == "lines" else {split: draft.hashes(split) for split in splits}
    names = () if draft.kind == "regression" else draft.names or ()
    counts = {split: tuple(count_labels(draft.labels[split], len(names)).tolist()) for split in splits if names}
    return DataReport(
        source=source.name,
        columns=columns.roles,
        origins={split: draft.origins[split] for split in splits},
        rows={split: tokens.num_texts for split, tokens in splits.items()},
        label_kind=draft.kind,
        label_reason=draft.kind_reason,
        label_names=draft.names,
        label_counts=counts,
        numbers={split: _spread(draft.labels[split]) for split in splits if draft.kind == "regression"},
        dropped_duplicates=draft.num_duplicates,
        dropped_near=draft.num_near,
        dropped_empty=draft.num_empty,
        dropped_unlabelled=draft.num_unlabelled,
        dropped_without_targets=sum(result.losses.num_dropped for result in encoded.values()),
        truncated_share={split: encoded[split].losses.num_truncated / splits[split].num_texts for split in splits},
        length_quantiles={split: _quantiles(tokens) for split, tokens in splits.items()},
        files=source.files,
        unread=source.unread,
        ignored_columns=ignored,
        prompt=None if columns.prompt is None else columns.prompt.text,
        as_chat=columns.as_chat,
        num_line_ends=draft.num_line_ends,
        length_histogram={split: histogram(result.whole_lengths) for split, result in encoded.items()},
        num_targets={split: int(tokens.num_targets.sum()) for split, tokens in splits.items()},
        findings=(*findings, *scarce_labels(names, counts, is_scored=draft.may_lack_labels)),
        shared=shared_texts(hashes),
        repeated=repeated_texts(hashes),
    )


def _name_findings(draft: Draft) -> list[Finding]:
    """Return what is worth telling of the names of labels."""
    if draft.kind == "regression" or draft.names is None:
        return []
    joined = joined_names(draft.names) if draft.kind == "single" else []
    return [*alike_names(draft.names), *joined, *absent_names(draft.names)]


def _spread(numbers: NDArray[Any]) -> tuple[float, float, float, float]:
    return float(numbers.min()), float(numbers.max()), float(numbers.mean()), float(numbers.std())


def _quantiles(split: TokenSplit) -> tuple[int, ...]:
    return tuple(np.quantile(split.lengths, QUANTILES, method="inverted_cdf").astype(int).tolist())
