"""Global batches, and their cut into micro-batches: integer arithmetic that may not change the mathematics.

A global batch is a set of sequences drawn in an order that depends on the seed alone. Inside one, sequences are sorted
by length and cut so that padding nearly vanishes; every rank gets the same number of micro-batches.

Dimension letters: B batch, T token.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ftkit.config.tree import BatchConfig
from ftkit.errors import ConfigError

if TYPE_CHECKING:
    from ftkit.data.arrays import TokenSplit

Indices = npt.NDArray[np.int64]

IGNORED = -100
"""The label of a place that carries no loss."""


Side = Literal["right", "left"]


@dataclass(frozen=True)
class Padding:
    """The padding that brings the sequences of a micro-batch to one length.

    Attributes:
        token_id: what fills up.
        side: where it stands; a property of the model (XLNet classifies at the last place of a row, whatever is there).
    """

    token_id: int
    side: Side = "right"


@dataclass(frozen=True)
class GlobalBatch:
    """The sequences of one optimizer step.

    Attributes:
        step: counted from 1.
        epoch: epochs done when this step is done, as a fraction.
        ends_epoch: whether it is the last of its epoch.
        indices: [B] rows of the split.
    """

    step: int
    epoch: float
    ends_epoch: bool
    indices: Indices


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward on one rank.

    Attributes:
        input_ids: [B, T] int64, padded on one side.
        attention_mask: [B, T] int64, 1 at tokens and 0 at padding; None where nothing is padded.
        token_type_ids: [B, T] int64, or None for models without segments.
        position_ids: [B, T] int64; None: the model counts by itself, from the mask or from 0.
        labels: classes [B] or tokens [B, T], int64; -100 carries no loss. Several labels [B, C] of 0 and 1, or numbers
            [B], fp32; NaN carries none.
        target_places: [N] int64, where labels are tokens: the places in [B * T] whose next token carries loss. They are
            counted on the host, so that nobody waits for a device to learn how many there are.
        hidden: what crosses from the frozen trunk into a model that runs from there on (`ftkit.models.trunk`): [B, D],
            or [B, T, D] with zeros at padding; None where the model runs whole.
        shares: [B] fp32, what each sequence counts of its text, 1 over the windows of it; None: each is a text.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    target_places: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    shares: torch.Tensor | None = None

    def inputs(self) -> dict[str, torch.Tensor]:
        """Return what the model's forward takes; what is None it makes itself."""
        names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "hidden")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the same on a device, which computes with it when it has arrived."""
        given: dict[str, Any] = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in given.items()})


def count_steps(num_samples: int, global_batch_size: int, epochs: float | None, max_steps: int | None) -> int:
    """Return the number of optimizer steps of a run; the last, smaller batch of an epoch counts."""
    if epochs is None:
        assert max_steps is not None  # ftkit/config/rules.py: training ends
        return max_steps
    steps = max(1, math.ceil(round(epochs * math.ceil(num_samples / global_batch_size), 6)))
    return steps if max_steps is None else min(steps, max_steps)


def global_batches(
    num_samples: int, global_batch_size: int, seed: int, num_steps: int, first: int = 1
) -> Iterator[GlobalBatch]:
    """Yield the global batches of a run, from step `first` to step `num_steps`.

    Args:
        num_samples: rows of the training split.
        global_batch_size: sequences in a step.
        seed: decides the order, alone.
        num_steps: the last step.
        first: the first step that is wanted; the others are not drawn.

    Yields:
        One batch a step.
    """
    per_epoch = math.ceil(num_samples / global_batch_size)
    order, drawn = np.empty(0, dtype=np.int64), -1
    for step in range(first, num_steps + 1):
        epoch, place = divmod(step - 1, per_epoch)
        if epoch != drawn:
            order, drawn = np.random.default_rng((seed, epoch)).permutation(num_samples), epoch
        indices = order[place * global_batch_size : (place + 1) * global_batch_size]
        yield GlobalBatch(step, epoch + (place + 1) / per_epoch, place + 1 == per_epoch, indices)


def check_cut(config: BatchConfig, longest: int) -> None:
    """Check that the longest sequence fits into a micro-batch.

    Args:
        config: the batch section.
        longest: tokens of the longest sequence.

    Raises:
        ConfigError: it does not.
    """
    limit = config.token_limit
    if limit is not None and longest > limit:
        raise ConfigError(
            f"batch.micro_batch_tokens={limit} is below the longest sequence, of {longest} tokens; "
            f"give --micro-batch-tokens {longest} or more, or cut texts shorter with --max-length"
        )


def cut(lengths: Indices, config: BatchConfig, world_size: int) -> list[list[Indices]]:
    """Cut a set of sequences into micro-batches, the same number on each rank.

    Sorted by length, contiguous, at most `micro_batch_tokens` padded tokens (or `micro_batch_size` sequences) each;
    the fewest that the ranks can share evenly, and among those the evenest. Where there are fewer sequences than
    ranks, some micro-batches are empty: those ranks run a sequence that carries no loss.

    Args:
        lengths: [B] tokens of each sequence.
        config: the limits.
        world_size: ranks.

    Returns:
        For each rank its micro-batches, each the places of its sequences in `lengths`.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    sizes = _even_chunks(ordered, config, world_size)
    chunks = np.split(order, np.cumsum(sizes)[:-1])
    # Dealt out in turns, there and back, so that what runs at the same time is of similar size on every rank.
    ranks: list[list[Indices]] = [[] for _ in range(world_size)]
    for number, chunk in enumerate(chunks):
        turn, seat = divmod(number, world_size)
        ranks[seat if turn % 2 == 0 else world_size - 1 - seat].append(chunk)
    return ranks


def collate(split: "TokenSplit", rows: Indices, padding: Padding, device: torch.device) -> MicroBatch:
    """Return sequences as tensors, padded to the longest of them.

    Args:
        split: where the sequences are.
        rows: [B] their places; none of them stands for one sequence that carries no loss (the first of the split).
        padding: what fills up, and where.
        device: where the tensors go.

    Returns:
        The micro-batch.
    """
    is_dummy = len(rows) == 0
    rows = np.zeros(1, dtype=np.int64) if is_dummy else rows
    lengths = split.lengths[rows]
    columns = np.arange(int(lengths.max()))
    places = columns < lengths[:, None] if padding.side == "right" else columns[::-1] < lengths[:, None]
    hidden = split.hidden
    if hidden is not None and hidden.is_pooled:
        # One vector stands for the sequence, at the one place of a token; which token makes no difference.
        places = np.ones((len(rows), 1), dtype=np.bool_)
    per_token = split.labels.dtype == np.bool_
    starts = split.offsets[rows]
    input_ids = _padded(split.tokens, starts, places, padding.token_id)
    if is_dummy:
        labels = _no_labels(split, input_ids)
    elif per_token:
        labels = np.where(_padded(split.labels, starts, places, 0) == 1, input_ids, IGNORED)
    else:
        labels = split.labels[split.texts_of(rows)]
    arrays = {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": None if places.all() else places,
        "token_type_ids": None if split.segments is None else _padded(split.segments, starts, places, 0),
        "target_places": find_targets(labels) if per_token else None,
        "shares": None if is_dummy else split.shares_of(rows),
    }
    tensors = {name: as_tensor(array) for name, array in arrays.items() if array is not None}
    if hidden is not None:
        tensors["hidden"] = _laid_out(hidden.states(rows), places)
    return MicroBatch(**tensors).to(device)


def find_targets(labels_BT: npt.NDArray[np.int64]) -> Indices:
    """Return the places in [B * T] whose next token carries loss, [N]; the last place of a row has no next token."""
    places_BT = np.zeros(labels_BT.shape, dtype=np.bool_)
    places_BT[:, :-1] = labels_BT[:, 1:] != IGNORED
    return np.flatnonzero(places_BT)


_DTYPES = {np.dtype(kind): torch.float32 for kind in (np.int8, np.float64, np.float32)}
"""What several labels, numbers and shares are to a model; all else are whole numbers."""


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return tokens, labels or shares as a model is given them."""
    return torch.as_tensor(array, dtype=_DTYPES.get(array.dtype, torch.int64))


def _no_labels(split: "TokenSplit", input_ids: Indices) -> npt.NDArray[Any]:
    """Return the labels of one sequence that carries no loss."""
    if split.labels.dtype in _DTYPES:
        return np.full((1, *split.labels.shape[1:]), np.nan)
    return np.full(input_ids.shape if split.labels.dtype == np.bool_ else 1, IGNORED)


def _laid_out(states: list[torch.Tensor], places: npt.NDArray[np.bool_]) -> torch.Tensor:
    """Lay hidden states out, [B, D] of one vector a sequence, else [B, T, D] with zeros at padding."""
    joined = torch.cat(states)
    if places.shape[1] == 1:
        return joined
    matrix = joined.new_zeros(*places.shape, joined.shape[-1])
    matrix[torch.from_numpy(np.ascontiguousarray(places))] = joined
    return matrix


def _padded(values: npt.NDArray[Any], starts: Indices, places: npt.NDArray[np.bool_], fill: int) -> Indices:
    """Lay ragged values out as a matrix, [B, T] int64, each row's in its own places."""
    matrix = np.full(places.shape, fill, dtype=np.int64)
    within = places.cumsum(axis=1) - 1
    matrix[places] = values[(starts[:, None] + within)[places]]
    return matrix


def _even_chunks(ordered: Indices, config: BatchConfig, world_size: int) -> list[int]:
    """Return the sizes of the chunks; their number is a multiple of the ranks."""
    if config.token_limit is None:
        assert config.micro_batch_size is not None
        num_chunks = max(1, math.ceil(len(ordered) / config.micro_batch_size))
        num_chunks = math.ceil(num_chunks / world_size) * world_size
        return [len(part) for part in np.array_split(ordered, num_chunks)]
    num_chunks = math.ceil(len(_greedy(ordered, config.token_limit)) / world_size) * world_size
    low, high = int(ordered[0]), config.token_limit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_greedy(ordered, middle)) <= num_chunks else (middle + 1, high)
    sizes = _greedy(ordered, high)
    while len(sizes) < num_chunks:
        sizes = _halve_largest(ordered, sizes)
    return sizes


def _greedy(ordered: Indices, limit: int) -> list[int]:
    """Fill chunks up to `limit` padded tokens; the first of each is its longest."""
    sizes: list[int] = []
    start = 0
    while start < len(ordered):
        size = max(1, min(limit // int(ordered[start]), len(ordered) - start))
        sizes.append(size)
        start += size
    return sizes


def _halve_largest(ordered: Indices, sizes: list[int]) -> list[int]:
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    costs = [size * int(ordered[start]) if size > 1 else 0 for size, start in zip(sizes, starts, strict=True)]
    if not any(costs):
        return [*sizes, 0]
    largest = int(np.argmax(costs))
    half = sizes[largest] // 2
    return [*sizes[:largest], sizes[largest] - half, half, *sizes[largest + 1 :]]


TRACED_MICRO_BATCHES = 2
"""A step of many micro-batches, or groups, is like a step of two: in the second the first one's gradients are there."""


@dataclass(frozen=True)
class Shape:
    """The micro-batches of one step on one rank.

    Attributes:
        batch: sequences in a micro-batch.
        length: tokens in a sequence, padding included.
        num_micro_batches: micro-batches in a step.
        is_padded: whether the shorter sequences need a mask.
        group_size: micro-batches that have their forwards before their backwards.
    """

    batch: int
    length: int
    num_micro_batches: int = 1
    is_padded: bool = False
    group_size: int = 1

    @property
    def traced(self) -> "Shape":
        """The same with no more micro-batches than have to be traced."""
        return replace(self, num_micro_batches=min(self.num_micro_batches, TRACED_MICRO_BATCHES * self.group_size))
