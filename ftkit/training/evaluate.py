"""Scores on a split: all logits of a classifier are kept; those of a language model die with their micro-batch."""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ftkit.config.tree import BatchConfig
from ftkit.data.arrays import Labels, TokenSplit
from ftkit.data.batching import Indices, Padding, as_tensor, collate, cut
from ftkit.engine.protocol import Scorer
from ftkit.errors import DoesNotFitError
from ftkit.machine.memory import is_out_of_memory, release_memory
from ftkit.machine.ranks import largest_of_ranks
from ftkit.models.build import set_training
from ftkit.records.scores import Scores
from ftkit.step.observer import NOTHING, Observer, Phase
from ftkit.training.recovery.limits import BEYOND
from ftkit.training.results.metrics import figures_of

SORTED_TOGETHER = 1024
"""Sequences that are sorted together: enough that padding nearly vanishes."""

_FITS, _HALVE, _TOO_LARGE = range(3)
"""What a rank says of a forward; the largest of all is what every rank does."""


Logits = NDArray[np.float32] | None
"""Those of the texts of a whole split, [N, C], of a number [N, 1]; None of a language model."""


def evaluate(
    engine: Scorer,
    split: TokenSplit,
    batch: BatchConfig,
    padding: Padding,
    labels: Labels | None,
    observer: Observer = NOTHING,
) -> tuple[Scores, Logits]:
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
        Scores and logits, the same on every rank.
    """
    started = time.perf_counter()
    logits_NC = None if labels is None else torch.zeros(len(split), len(labels.names), device=engine.device)
    objective = engine.objective.unweighted()
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    set_training(engine.model, False)

    def score(rows: Indices) -> None:
        micro_batch = collate(split, rows, padding, engine.device)
        if logits_NC is None:
            total.add_(engine.loss(micro_batch))
            return
        logits = engine.logits(micro_batch)
        loss = objective.score(logits, micro_batch.labels)
        if len(rows):
            logits_NC[torch.as_tensor(rows, device=engine.device)] = logits.float()
        total.add_(loss)

    with torch.no_grad(), observer.during(Phase.EVALUATION):
        for rows in _shares(engine, split, batch):
            _score_in_parts(engine, rows, score)
    set_training(engine.model, True)
    # Each rank has left zeros where others scored.
    whole: Logits = None if logits_NC is None else split.averaged(engine.sum_over_ranks(logits_NC).cpu().numpy())
    total = engine.sum_over_ranks(total)
    if split.windows is not None and whole is not None:  # what a text is answered is what it is scored by
        total = objective.score(torch.from_numpy(whole), as_tensor(split.labels))
    loss = float(total) / max(float(objective.target_weights(split).sum()), 1.0)
    figures = {} if whole is None or labels is None else figures_of(whole, split.labels, labels)
    perplexity = math.exp(min(loss, 700.0)) if whole is None else None
    seconds = time.perf_counter() - started
    return Scores(loss=loss, perplexity=perplexity, num_samples=split.num_texts, seconds=seconds, **figures), whole


def _shares(engine: Scorer, split: TokenSplit, batch: BatchConfig) -> Iterator[Indices]:
    """Yield the rows of this rank's micro-batches; every rank gets the same number, as ZeRO-3 needs."""
    lengths = split.lengths
    for start in range(0, len(split), SORTED_TOGETHER):
        rows: Indices = np.arange(start, min(start + SORTED_TOGETHER, len(split)))
        for places in cut(lengths[rows], batch, engine.process.world_size)[engine.process.rank]:
            yield rows[places]


def _score_in_parts(engine: Scorer, rows: Indices, score: Callable[[Indices], None]) -> None:
    """Score the rows of a micro-batch, in halves where memory runs out.

    Ranks that wait for one another in each forward part ways nowhere: where memory ran out on one of them, it first
    comes to the end of this forward with a sequence that carries no loss, and then all of them run two more.
    """
    engine.begin_step(0)
    reason = None
    try:
        score(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
    if reason is not None:  # outside the handler, whose exception holds the tensors of the forward
        release_memory(engine.device)
    if _agreed(engine, reason, rows, score) == _FITS:
        return
    rest = rows if reason is not None else rows[:0]  # a rank whose rows are scored goes along with empty ones
    for half in np.array_split(rest, 2):
        _score_in_parts(engine, half, score)


def _agreed(engine: Scorer, reason: str | None, rows: Indices, score: Callable[[Indices], None]) -> int:
    """Return whether a forward fitted on all ranks that wait for one another in it."""
    outcome = _FITS if reason is None else _HALVE if len(rows) > 1 else _TOO_LARGE
    if engine.shares_forwards and engine.process.world_size > 1:
        if reason is not None:
            engine.rewind()
            score(rows[:0])
        outcome = largest_of_ranks(engine.process, outcome)
    if outcome == _TOO_LARGE:
        raise DoesNotFitError(
            f"out of memory in an evaluation with one sequence at a time: {reason or 'on another rank'}; try {BEYOND}"
        )
    return outcome
