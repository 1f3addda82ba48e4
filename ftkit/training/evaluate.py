"""Scores on a split by streaming metrics: no logit outlives its micro-batch. The only importer of torchmetrics."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ftkit.config.tree import BatchConfig
from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import IGNORED, Indices, collate, cut
from ftkit.engine.protocol import Engine
from ftkit.machine.memory import is_out_of_memory, release_memory
from ftkit.models.build import set_training
from ftkit.records.schema import Scores
from ftkit.step.observer import NOTHING, Observer, Phase

_BLOCK = 1024
"""Sequences that are sorted together: enough that padding nearly vanishes."""


def evaluate(  # what a score depends on, and who watches
    engine: Engine,
    split: TokenSplit,
    batch: BatchConfig,
    pad_token_id: int,
    num_labels: int | None,
    observer: Observer = NOTHING,
) -> Scores:
    """Score the model on a split, shared out over the ranks.

    Args:
        engine: the model, wherever it is; called by every rank.
        split: what it is scored on.
        batch: the limits of a micro-batch.
        pad_token_id: what fills up.
        num_labels: classes, or None for causal-lm.
        observer: is told that this is an evaluation.

    Returns:
        The scores, the same on every rank.
    """
    started = time.perf_counter()
    scores = _classification_scores(num_labels, engine.device) if num_labels else None
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    set_training(engine.model, False)

    def score(rows: Indices) -> None:
        micro_batch = collate(split, rows, pad_token_id, engine.device)
        if scores is None:
            total.add_(engine.loss(micro_batch))
            return
        logits = engine.logits(micro_batch)
        loss, are_real = engine.objective.score(logits, micro_batch.labels), (micro_batch.labels != IGNORED).all()
        if are_real:
            scores.update(logits.float(), micro_batch.labels)
        total.add_(loss)

    with torch.no_grad(), observer.during(Phase.EVALUATION):
        for rows in _shares(engine, split, batch):
            _score_in_parts(engine, rows, score)
    set_training(engine.model, True)
    num_targets = float(engine.objective.target_weights(split).sum())
    loss = float(engine.sum_over_ranks(total)) / max(num_targets, 1.0)
    figures = {} if scores is None else _figures(engine, scores)
    perplexity = math.exp(min(loss, 700.0)) if num_labels is None else None
    return Scores(
        loss=loss,
        perplexity=perplexity,
        num_samples=len(split),
        seconds=time.perf_counter() - started,
        **figures,
    )


def _shares(engine: Engine, split: TokenSplit, batch: BatchConfig) -> Iterator[Indices]:
    """Yield the rows of this rank's micro-batches; every rank gets the same number, as ZeRO-3 needs."""
    lengths = split.lengths
    for start in range(0, len(split), _BLOCK):
        rows: Indices = np.arange(start, min(start + _BLOCK, len(split)))
        for places in cut(lengths[rows], batch, engine.process.world_size)[engine.process.rank]:
            yield rows[places]


def _score_in_parts(engine: Engine, rows: Indices, score: Callable[[Indices], None]) -> None:
    """Score the rows of a micro-batch, in halves where memory runs out; ranks that gather weights cannot part ways."""
    try:
        score(rows)
        return
    except (RuntimeError, MemoryError) as error:
        may_halve = engine.process.world_size == 1 or engine.name == "plain"
        if not is_out_of_memory(error) or not may_halve or len(rows) < 2:
            raise
    release_memory(engine.device)
    for half in np.array_split(rows, 2):
        _score_in_parts(engine, half, score)


def _classification_scores(num_labels: int, device: torch.device) -> Any:
    """Return a streaming confusion matrix; the ranks' are summed by the engine, not by torchmetrics."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    return MulticlassConfusionMatrix(num_labels, sync_on_compute=False).to(device)


def _figures(engine: Engine, scores: Any) -> dict[str, Any]:
    """Return accuracy and F1 of the confusion matrix over all ranks; row: true, column: predicted."""
    matrix = engine.sum_over_ranks(scores.confmat.to(torch.float64))
    hits, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    present = (true + predicted) > 0
    f1 = torch.where(present, 2 * hits / (true + predicted).clamp(min=1), torch.zeros_like(hits))
    return {
        "accuracy": float(hits.sum() / matrix.sum()),
        "f1_macro": float(f1.sum() / present.sum()),
        "f1_weighted": float((f1 * true).sum() / true.sum()),
        "confusion": matrix.to(torch.int64).tolist(),
    }
