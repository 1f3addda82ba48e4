"""Shape the batches of a plan: by the data, or by the worst that data can be, and by the cut of a global batch."""

import math
import sys
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from ftkit.config.tree import BatchConfig, DataConfig, RunConfig
from ftkit.data.arrays import PreparedData
from ftkit.data.batching import Shape, count_steps, cut
from ftkit.models.kernels.unpadded import num_rows

CountRows = Callable[[NDArray[np.int64]], int]
ShapeOf = Callable[[NDArray[np.int64]], Hashable]
_KEPT_LENGTHS = 4096
"""Of training sequences."""
_FEWEST_DRAWN, _MOST_DRAWN, _DRAWN_SEQUENCES = 8, 256, 2**15
"""Global batches that are drawn from these, to see how the data is cut: as many as have so many sequences together."""
_SORTED_TOGETHER = 1024
"""Sequences that an evaluation sorts together (`ftkit/training/evaluate.py`), much as a trunk's pass does."""


@dataclass(frozen=True)
class Sequences:
    """The facts about the training data that a plan needs.

    Attributes:
        num: texts of the training split, which have a sequence each where they are not read in windows; None: unknown.
        longest: tokens of the longest of any split.
        are_equal: whether all are as long as that, so that nothing is padded.
        shortest: tokens of the shortest.
        num_all: of all splits; None: unknown.
        all_tokens: of all splits; None: unknown.
        validation_tokens: of the validation split; 0: there is none.
        test_tokens: of the test split; 0: there is none.
        per_text: sequences of a training text, on average: its windows.
        most_per_text: sequences of the training text that has most.
        lengths: tokens of training sequences, at equal distances among all of them; empty: unknown.
    """

    num: int | None
    longest: int
    are_equal: bool
    shortest: int = 1
    num_all: int | None = None
    all_tokens: int | None = None
    validation_tokens: int = 0
    test_tokens: int = 0
    per_text: float = 1.0
    most_per_text: int = 1
    lengths: tuple[int, ...] = ()

    @classmethod
    def unseen(cls, config: RunConfig, num: int | None = None, scored: tuple[int, int] | None = None) -> "Sequences":
        """Return the worst case of data that is not at hand: every sequence as long as `data.max_length`.

        Args:
            config: the run.
            num: training sequences; None: unknown.
            scored: sequences to validate and to test on; None: the shares of the data that are asked for.

        Returns:
            The sequences.
        """
        data = config.data
        is_packed = config.task == "causal-lm" and not (
            data.completion_column or data.messages_column or data.prompt_column
        )
        if num is None:
            return cls(None, data.max_length, is_packed)
        counts = (num, *(_shares(data, num) if scored is None else scored))
        total, validation, test = (data.max_length * one for one in (sum(counts), *counts[1:]))
        return cls(
            num,
            data.max_length,
            is_packed,
            num_all=sum(counts),
            all_tokens=total,
            validation_tokens=validation,
            test_tokens=test,
        )

    @classmethod
    def of(cls, data: PreparedData) -> "Sequences":
        """Return the facts about data that is at hand."""
        lengths = [split.lengths for split in data.splits]
        shortest, longest = min(int(one.min()) for one in lengths), data.longest
        return cls(
            num=data.train.num_texts,
            longest=longest,
            are_equal=shortest == longest,
            shortest=shortest,
            num_all=sum(map(len, lengths)),
            all_tokens=sum(int(one.sum()) for one in lengths),
            validation_tokens=0 if data.validation is None else int(data.validation.lengths.sum()),
            test_tokens=0 if data.test is None else int(data.test.lengths.sum()),
            per_text=len(data.train) / data.train.num_texts,
            most_per_text=1 if data.train.windows is None else int(np.diff(data.train.windows).max()),
            lengths=tuple(data.train.lengths[:: math.ceil(len(data.train) / _KEPT_LENGTHS)].tolist()),
        )


@dataclass(frozen=True)
class Usual:
    """The micro-batches of one rank in a step on the data as it is, on average; a `Shape` has the worst.

    Attributes:
        num_micro_batches: of a step.
        sequences: of a micro-batch.
        tokens: of a micro-batch, padding included where layers run over it.
        places: of a micro-batch, padding included.
        scores: of an attention head in a micro-batch, for which all sequences are as long as the longest.
    """

    num_micro_batches: float
    sequences: float
    tokens: float
    places: float
    scores: float


def _shares(data: DataConfig, num: int) -> tuple[int, int]:
    """Return the sequences that shares of the data leave to validate and to test on, beside those to train on."""
    whole = num / max(1.0 - data.validation_share - data.test_share, 1 / num)
    most = whole if data.max_eval_samples is None else data.max_eval_samples
    validation, test = (min(round(share * whole), round(most)) for share in (data.validation_share, data.test_share))
    return validation, test


def rank_share(config: RunConfig, world_size: int, sequences: Sequences) -> int:
    """Return the most sequences of a global batch that one rank gets."""
    return math.ceil(_num_texts(config.batch, sequences) * sequences.most_per_text / world_size)


def num_micro_batches(config: RunConfig, world_size: int, sequences: Sequences, batch: int) -> int:
    """Return the micro-batches of `batch` sequences that one rank runs in a step of texts with usual windows."""
    return math.ceil(_num_texts(config.batch, sequences) * sequences.per_text / world_size / batch)


def _num_texts(batch: BatchConfig, sequences: Sequences) -> int:
    return min(batch.global_batch_size, sequences.num or sys.maxsize)


def plan_shape(config: RunConfig, world_size: int, sequences: Sequences | None = None) -> Shape:
    """Return the worst micro-batch of a configuration: as many of the longest sequences as the cut allows.

    Args:
        config: the run.
        world_size: ranks.
        sequences: the data; None: not at hand.

    Returns:
        The shape of the micro-batches of one rank.
    """
    sequences = sequences or Sequences.unseen(config)
    share = rank_share(config, world_size, sequences)
    limit = config.batch.token_limit
    batch = config.batch.micro_batch_size if limit is None else max(1, limit // sequences.longest)
    batch = min(batch or 1, share)
    micro_batches = num_micro_batches(config, world_size, sequences, batch)
    is_padded, group_size = not sequences.are_equal and batch > 1, config.engine.group_size(micro_batches)
    return Shape(batch, sequences.longest, micro_batches, is_padded, group_size)


def padded_rows(lengths: NDArray[np.int64]) -> int:
    """Return the places that sequences of `lengths` [B], one or more, take padded to the longest of them."""
    return len(lengths) * int(lengths.max())


def padded_scores(lengths: NDArray[np.int64]) -> int:
    """Return the scores of an attention head over sequences of `lengths` [B], all laid out to the longest of them."""
    return padded_rows(lengths) * int(lengths.max())


def padded_shape(lengths: NDArray[np.int64]) -> tuple[int, int]:
    """Return how many sequences there are, and the tokens of the longest, to which attention lays them all out.

    Args:
        lengths: [B] their tokens, of one sequence or more.
    """
    return len(lengths), int(lengths.max())


def packed_rows(lengths: NDArray[np.int64]) -> int:
    """Return the rows that the tokens of sequences of `lengths` [B] take where layers run without padding."""
    return num_rows(int(lengths.sum()))


def row_count(*, unpadded: bool) -> CountRows:
    """Return what counts the rows of a micro-batch, where layers run over tokens alone or over padding, too."""
    return packed_rows if unpadded else padded_rows


def usual_step(config: RunConfig, world_size: int, sequences: Sequences, rows: CountRows = padded_rows) -> Usual:
    """Return how the data is usually cut: as some global batches are that are drawn from it.

    Args:
        config: the run.
        world_size: ranks.
        sequences: the data; where its lengths are not known, all are as long as the longest.
        rows: counts what the layers compute of a micro-batch, by its lengths.
    """
    if not sequences.lengths:
        shape = plan_shape(config, world_size, sequences)
        full = shape.batch * shape.length
        return Usual(shape.num_micro_batches, shape.batch, full, full, full * shape.length)
    cuts = _cuts(config.batch, world_size, sequences)
    chunks = [chunk for chunks in cuts for chunk in chunks]
    counts = (len, rows, padded_rows, padded_scores)
    return Usual(len(chunks) / len(cuts), *(sum(map(count, chunks)) / len(chunks) for count in counts))


def largest_drawn(
    config: RunConfig, world_size: int, sequences: Sequences, num_steps: int | None, rows: CountRows
) -> tuple[int, int, int] | None:
    """Return the most rows, places, and scores of an attention head, of a micro-batch of one rank in a run.

    Args:
        config: the run.
        world_size: ranks.
        sequences: the data.
        num_steps: of the run, of which the first are drawn; None: unknown.
        rows: counts what the layers compute of a micro-batch, by its lengths.

    Returns:
        Not always of the same micro-batch; None where no lengths are known.
    """
    if not sequences.lengths:
        return None
    chunks = [chunk for chunks in _cuts(config.batch, world_size, sequences)[:num_steps] for chunk in chunks]
    return max(map(rows, chunks)), max(map(padded_rows, chunks)), max(map(padded_scores, chunks))


def fresh_shapes(
    config: RunConfig,
    world_size: int,
    sequences: Sequences,
    num_steps: int,
    num_kept: int,
    shape_of: ShapeOf = padded_rows,
) -> float:
    """Return how many micro-batches of one rank, in a whole run, have a shape that is not known from one before.

    Args:
        config: the run.
        world_size: ranks.
        sequences: the data; where its lengths are not known, all micro-batches have one shape.
        num_steps: of the run; the first are drawn, and the others meet new shapes as the later half of these does.
        num_kept: shapes that stay known, those that came last.
        shape_of: what tells the shape of a micro-batch, by its lengths.
    """
    if not sequences.lengths:
        return 1.0
    kept: dict[Hashable, None] = {}
    fresh = []
    for chunks in _cuts(config.batch, world_size, sequences)[:num_steps]:
        fresh.append(0)
        for shape in map(shape_of, chunks):
            fresh[-1] += shape not in kept
            kept.pop(shape, None)
            kept[shape] = None
            if len(kept) > num_kept:
                del kept[next(iter(kept))]
    return sum(fresh) + (num_steps - len(fresh)) * mean(fresh[len(fresh) // 2 :])


def fresh_share(config: RunConfig, world_size: int, sequences: Sequences, shape_of: ShapeOf = padded_rows) -> float:
    """Return the share of the micro-batches of an evaluation whose shape is not known from one before it.

    Those of the steps between two evaluations are taken to have others, and more than are kept.

    Args:
        config: the run.
        world_size: ranks.
        sequences: the data, whose texts are all about as long as those that train; where its lengths are not known, all
            micro-batches have one shape, which the steps have too.
        shape_of: as of `fresh_shapes`.
    """
    if not sequences.lengths:
        return 0.0
    lengths = np.array(sequences.lengths)
    drawn = np.random.default_rng(0).choice(lengths, _SORTED_TOGETHER, replace=len(lengths) < _SORTED_TOGETHER)
    shapes = [shape_of(drawn[chunk]) for chunk in cut(drawn, config.batch, world_size)[0] if len(chunk)]
    return len(set(shapes)) / len(shapes)


@lru_cache(maxsize=4)
def _cuts(batch: BatchConfig, world_size: int, sequences: Sequences) -> list[list[NDArray[np.int64]]]:
    """Return the lengths in each micro-batch of one rank, of many steps that are drawn from the data."""
    number = min(_MOST_DRAWN, max(_FEWEST_DRAWN, _DRAWN_SEQUENCES // _num_texts(batch, sequences)))
    drawn = _drawn(batch, sequences, number)
    return [[lengths[chunk] for chunk in cut(lengths, batch, world_size)[0] if len(chunk)] for lengths in drawn]


def _drawn(batch: BatchConfig, sequences: Sequences, number: int) -> Iterator[NDArray[np.int64]]:
    """Yield the lengths of some global batches, drawn from the data."""
    lengths, draw = np.array(sequences.lengths), np.random.default_rng(0)
    num = round(_num_texts(batch, sequences) * sequences.per_text)
    for _ in range(number):
        # Of long data some lengths alone are kept: where a global batch has more sequences, they are drawn repeatedly.
        yield draw.choice(lengths, num, replace=num > len(lengths))


def num_steps(config: RunConfig, num_samples: int | None) -> int | None:
    """Return the optimizer steps of a run; None where neither the data nor `max_steps` says it."""
    if num_samples is None:
        return config.training.max_steps
    return count_steps(num_samples, config.batch.global_batch_size, config.training.epochs, config.training.max_steps)


def epoch_steps(config: RunConfig, num_samples: int) -> int:
    """Return the optimizer steps of an epoch."""
    return count_steps(num_samples, config.batch.global_batch_size, 1.0, None)


def num_checkpoints(config: RunConfig, num_samples: int | None) -> int | None:
    """Return the checkpoints that a run writes; None where its steps or its epochs are not known."""
    steps = num_steps(config, num_samples)
    if steps is None or num_samples is None:
        return None
    return math.ceil(steps / (config.training.checkpoint_every or epoch_steps(config, num_samples)))
