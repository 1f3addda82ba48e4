"""The published rows: what each says of a run and of what was measured, and the card that it ran on."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ftkit.machine.contexts import OLDER_BYTES
from ftkit.machine.hardware import Gpu, recognize_gpu


class Arch(TypedDict):
    """The sizes of a row's model, from which a configuration is made without a download."""

    arch_class: str
    hidden: int
    layers: int
    heads: int
    kv_heads: NotRequired[int]
    head_dim: NotRequired[int]
    intermediate: int
    vocab: int | None
    tie_embeddings: NotRequired[bool]
    max_pos: NotRequired[int]
    num_labels: NotRequired[int]


class Source(TypedDict):
    """Where a row was published."""

    repo: str
    file: str


class Row(TypedDict):
    """One published run. None: not said, but for `value_bytes`, where it says that the run did not fit."""

    id: str
    group: str
    """The table that it was published in; its first words name the stack."""
    dup_group: str | None
    """Rows that print the same measurement share it."""
    source: Source
    model_id: str
    arch: Arch | None
    method: str
    lora_r: int | None
    lora_target_modules: str | None
    trainable_notes: NotRequired[str | None]
    base_dtype: str
    quant: str | None
    compute_dtype: str
    optimizer: str
    optimizer_bits: NotRequired[int | None]
    micro_batch: int
    grad_accum: int | str | None
    """Micro-batches in a step, or what is said of the global batch instead."""
    seq_len: int
    """Tokens of a sequence, or their cap; see `has_length`, which a row that is traced passes."""
    seq_kind: str
    grad_checkpointing: bool | str | None
    attn_impl: str | None
    loss_head: str | None
    fused_kernels: str | None
    torch_compile: bool | None
    parallel: str
    offload: str | None
    n_gpus: int
    gpu: str | None
    framework: str
    framework_version: NotRequired[str | None]
    date: str
    metric_class: str
    value_bytes: int | None
    extra_metrics: dict[str, Any] | None
    throughput: dict[str, Any] | None
    confidence: str
    length_known: bool
    their_prediction_bytes: NotRequired[int]
    """What the tool whose authors measured the row says of it."""
    foretold_bytes: NotRequired[int]
    """What the row's stack said of it before it ran, of a run of our own."""


OWN = "own/"
"""What the group of a run of our own begins with."""


def is_own(row: Row) -> bool:
    """Return whether we ran a row ourselves: benchmarks/own_rows.jsonl."""
    return row["group"].startswith(OWN)


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Return the rows of files, one JSON object a line."""
    return [row for path in paths for row in _rows_of(path)]


def _rows_of(path: Path) -> Iterator[Row]:
    yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def has_length(row: Row) -> bool:
    """Return whether a row's length or its cap is known."""
    return row["seq_len"] is not None


def arch_of(row: Row) -> Arch:
    """Return the sizes of a row's model, which are known of a row that is traced."""
    assert row["arch"] is not None
    return row["arch"]


def rank_of(row: Row) -> int:
    """Return the rank of a row's adapters, which it has."""
    assert row["lora_r"] is not None
    return row["lora_r"]


def num_micro_batches(row: Row) -> int:
    """Return the micro-batches of a step, one where a row does not say."""
    return row["grad_accum"] if isinstance(row["grad_accum"], int) else 1


def card(row: Row) -> Gpu | None:
    """Return the card of a row, such as `2x RTX 3090`; None: not said, or not in ftkit's table."""
    name = re.sub(r"^\d+x ", "", row["gpu"] or "")
    if "80GB implied" in name:
        name = "A100-SXM4-80GB"
    return recognize_gpu(re.sub(r"(\d) GB", r"\1GB", name.partition(" (")[0]))


def room(row: Row) -> int | None:
    """Return the bytes that a row's card leaves for tensors; None: the card is not known."""
    found = card(row)
    return None if found is None else found.memory_bytes - OLDER_BYTES
