"""Scores on a split: figures are summed as micro-batches come, so that no logit outlives its own."""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from ftkit.config.tree import BatchConfig
from ftkit.data.arrays import Labels, TokenSplit
from ftkit.data.batching import Indices, Padding, collate, cut
from ftkit.engine.protocol import Engine
from ftkit.machine.memory import is_out_of_memory, release_memory
from ftkit.models.build import set_training
from ftkit.records.schema import Scores
from ftkit.step.observer import NOTHING, Observer, Phase
from ftkit.training.metrics import tally_of

_BLOCK = 1024
"""Sequences that are sorted together: enough that padding nearly vanishes."""


def evaluate(
    engine: Engine,
    split: TokenSplit,
    batch: BatchConfig,
    padding: Padding,
    labels: Labels | None,
    observer: Observer = NOTHING,
) -> Scores:
    """Score the model on a split, shared out over the ranks.

    The loss is that of targets which count the same, whatever the weights that train: it compares between runs.

    Args:
        engine: the model, wherever it is; called by every rank.
        split: what it is scored on.
        batch: the limits of a micro-batch.
        padding: what fills up, and where.
        labels: what they are, or None for causal-lm.
        observer: is told that this is an evaluation.

    Returns:
        The scores, the same on every rank.
    """
    started = time.perf_counter()
    tally = None if labels is None else tally_of(split, labels, engine.device)
    objective = engine.objective.unweighted()
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    set_training(engine.model, False)

    def score(rows: Indices) -> None:
        micro_batch = collate(split, rows, padding, engine.device)
        if tally is None:
            total.add_(engine.loss(micro_batch))
            return
        logits = engine.logits(micro_batch)
        loss = objective.score(logits, micro_batch.labels)
        if len(rows):
            tally.add(rows, logits.float(), micro_batch.labels)
        total.add_(loss)

    with torch.no_grad(), observer.during(Phase.EVALUATION):
        for rows in _shares(engine, split, batch):
            _score_in_parts(engine, rows, score)
    set_training(engine.model, True)
    loss = float(engine.sum_over_ranks(total)) / max(float(objective.target_weights(split).sum()), 1.0)
    return Scores(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)) if tally is None else None,
        num_samples=len(split),
        seconds=time.perf_counter() - started,
        **({} if tally is None else tally.figures(engine.sum_over_ranks)),
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
