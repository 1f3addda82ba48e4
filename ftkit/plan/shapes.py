"""Shape the batches of a plan: by the data, or by the worst that data can be, and by the cut of a global batch."""

import math
import sys
from dataclasses import dataclass

from ftkit.config.tree import RunConfig
from ftkit.data.arrays import PreparedData
from ftkit.data.batching import Shape, count_steps


@dataclass(frozen=True)
class Sequences:
    """The facts about the training data that a plan needs.

    Attributes:
        num: of the training split; None: unknown.
        longest: tokens of the longest of any split.
        are_equal: whether all are as long as that, so that nothing is padded.
        shortest: tokens of the shortest.
        num_all: of all splits; None: unknown.
        all_tokens: of all splits; None: unknown.
    """

    num: int | None
    longest: int
    are_equal: bool
    shortest: int = 1
    num_all: int | None = None
    all_tokens: int | None = None

    @classmethod
    def unseen(cls, config: RunConfig, num: int | None = None) -> "Sequences":
        """Return the worst case of data that is not at hand: every sequence as long as `data.max_length`.

        Args:
            config: the run.
            num: training sequences; None: unknown.

        Returns:
            The sequences.
        """
        data = config.data
        is_packed = config.task == "causal-lm" and not (
            data.completion_column or data.messages_column or data.prompt_column
        )
        return cls(num, data.max_length, is_packed, 1, num, None if num is None else num * data.max_length)

    @classmethod
    def of(cls, data: PreparedData) -> "Sequences":
        """Return the facts about data that is at hand."""
        lengths = [split.lengths for split in data.splits]
        shortest, longest = min(int(one.min()) for one in lengths), data.longest
        return cls(
            num=len(data.train),
            longest=longest,
            are_equal=shortest == longest,
            shortest=shortest,
            num_all=sum(map(len, lengths)),
            all_tokens=sum(int(one.sum()) for one in lengths),
        )


def rank_share(config: RunConfig, world_size: int, sequences: Sequences) -> int:
    """Return the most sequences of a global batch that one rank gets."""
    return math.ceil(min(config.batch.global_batch_size, sequences.num or sys.maxsize) / world_size)


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
    return Shape(batch, sequences.longest, math.ceil(share / batch), is_padded=not sequences.are_equal and batch > 1)


def num_steps(config: RunConfig, num_samples: int | None) -> int | None:
    """Return the optimizer steps of a run; None where neither the data nor `max_steps` says it."""
    if num_samples is None:
        return config.training.max_steps
    return count_steps(num_samples, config.batch.global_batch_size, config.training.epochs, config.training.max_steps)
