"""A run whose frozen layers are streamed: what the host keeps of them, what comes in a step, and how long that takes.

The window itself is on the tape, since a trace makes it as a run does. The layers that are traced are few, so what all
of them weigh is asked of the whole model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ftkit.data.batching import Shape
from ftkit.models.activations.link import pinned_size
from ftkit.models.build import build_empty_model
from ftkit.models.streaming.host import table_bytes_beside
from ftkit.models.streaming.stream import resident_bytes, stream_of
from ftkit.models.streaming.table import left_out_table
from ftkit.models.structure.layers import first_trained_layer
from ftkit.observe.tape import Tape
from ftkit.plan.inputs.case import Case, Counts
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.fallback import Elsewhere
from ftkit.plan.seconds.calibration import source_words
from ftkit.plan.seconds.step_time import StepTime
from ftkit.plan.zero.share import RankShare, share_out
from ftkit.records.streamed import StreamPlan

DISK_BYTES_PER_SECOND = 2e9
"""Assumed of a disk that layers are read from: NVMe over PCIe 3.0 reads up to 3.5 GB/s, and others are slower. What the
system still has of the files in memory comes faster, and no plan counts on it."""


Share = TypeVar("Share", RankShare, Elsewhere)


@dataclass(frozen=True)
class Streamed:
    """The streamed layers of a run.

    Attributes:
        place: where they come from: `ram` or `disk`.
        layer_bytes: of each layer.
        head_bytes: of the head; 0 where it stays.
        window_bytes: of all buffers.
        resident_bytes: of the window and of the weights that stay on the device.
        staging_bytes: of the largest weight, which passes through the host's memory on its way from a disk to a GPU; of
            the largest layer where it is packed.
        left_bytes: of all streamed weights, the table of tokens among them, in the type that the run computes in: what
            is not loaded.
        table_bytes: of the table of tokens, where its rows are looked up on the host and it is not the head too.
        lowest: the lowest layer that a backward passes through; None: none.
        is_packed: whether the layers are in 4 bits, which come from a disk to a GPU through pinned memory.
    """

    place: str
    layer_bytes: tuple[int, ...]
    head_bytes: int
    window_bytes: int
    resident_bytes: int
    staging_bytes: int
    left_bytes: int
    table_bytes: int
    lowest: int | None
    is_packed: bool = False

    @classmethod
    def of(cls, case: Case) -> "Streamed | None":
        """Return what a run streams; None: nothing.

        Args:
            case: the run.

        Raises:
            ModelError: the model's layers cannot be streamed.
        """
        config = case.run.config
        if config.engine.stream_layers == "none":
            return None
        model = build_empty_model(config, case.architecture, case.run.dtype)
        stream, resident = stream_of(model), resident_bytes(model)
        assert stream is not None
        assert resident is not None
        layout, place = stream.layout, config.engine.stream_layers
        table_bytes = table_bytes_beside(layout, left_out_table(model))
        return cls(
            place,
            tuple(map(layout.bytes_of, range(layout.num_layers))),
            layout.head_bytes,
            layout.window_bytes,
            resident,
            layout.buffer_bytes if layout.is_packed else max(slot.num_bytes for slot in layout.slots),
            sum(slot.whole_bytes for slot in layout.slots) + table_bytes,
            table_bytes,
            first_trained_layer(model),
            layout.is_packed,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers, and of the head."""
        return sum(self.layer_bytes) + self.head_bytes

    def on_host(self, share: Share, device_type: str) -> Share:
        """Return a rank's share with what its host keeps: all layers, pinned and once for all ranks, or what comes.

        Args:
            share: of the plain engine.
            device_type: what computes; a CPU reads from the disk into the window itself.
        """
        if self.place == "ram":
            return replace(share, shared_bytes=self.num_bytes + self.table_bytes)
        if device_type == "cpu":
            return share
        pinned = pinned_size(self.staging_bytes) if self.is_packed else 0
        # Beside packed layers the head comes through memory of its own, which is not pinned.
        staging = max(self.staging_bytes, pinned) + (self.head_bytes if self.is_packed else 0)
        return replace(share, host_bytes=staging, pinned_bytes=pinned)

    def plan(self, target: Target, shape: Shape, *, is_closed: bool = False) -> StreamPlan:
        """Return what a plan says of the layers.

        Args:
            target: where they go.
            shape: of a step; the micro-batches of a group go through a layer before the next one comes.
            is_closed: whether a step runs from above the frozen trunk, which has run before.
        """
        num_groups = -(-shape.num_micro_batches // shape.group_size)
        step_bytes = num_groups * self._coming(self._order(is_closed))
        return StreamPlan(
            place=self.place,
            num_bytes=self.num_bytes,
            window_bytes=self.window_bytes,
            step_bytes=step_bytes,
            step_seconds=step_bytes / self._rate(target),
            source=_source(target, self.place),
        )

    def pass_seconds(self, target: Target) -> float:
        """Return how long all layers take to come once, for a forward."""
        return self.num_bytes / self._rate(target)

    def _rate(self, target: Target) -> float:
        """Return the bytes per second at which layers come."""
        known = target.calibration
        disk = DISK_BYTES_PER_SECOND if known is None else known.disk_read
        if target.gpu is None:
            return disk
        link = target.gpu.host_rate if known is None or known.link is None else known.link
        return link if self.place == "ram" else min(disk, link)

    def _order(self, is_closed: bool) -> list[int]:
        """Return the layers as a group of micro-batches runs them, up and down again, each once where it turns.

        A streamed head comes where they turn, and stands there twice: it takes the place of two layers.
        """
        num = len(self.layer_bytes)
        lowest = num if self.lowest is None else self.lowest
        head = [num, num] if self.head_bytes else []
        top = [num - 1] if head and lowest < num else []
        order = [*range(lowest if is_closed else 0, num), *head, *top, *range(num - 2, lowest - 1, -1)]
        return order[:-1] if len(order) > 1 and order[0] == order[-1] else order

    def _coming(self, order: Sequence[int]) -> int:
        """Return the bytes that come while layers run in an order again and again: the last two are there still."""
        sizes = (*self.layer_bytes, self.head_bytes)
        return sum(
            sizes[layer] for place, layer in enumerate(order) if layer not in (order[place - 1], order[place - 2])
        )


def _source(target: Target, place: str) -> str:
    """Return where the rate is from at which layers come, in words."""
    if (known := target.calibration) is not None:
        return f"with rates {source_words(known.date)}"
    return "with an assumed disk" if place == "disk" else "with the PCIe of the table of cards"


def seconds_beside(time: StepTime, coming: StreamPlan | None, host_rate: float) -> float:
    """Return how long a step takes beside the layers that come: activations come back over the link that they take.

    Args:
        time: of the step without them.
        coming: the layers; None: none are streamed.
        host_rate: bytes per second of the link.
    """
    if coming is None:
        return time.seconds
    return max(time.seconds, coming.step_seconds, coming.step_bytes / host_rate + time.returning_seconds)


def coming_usually(coming: StreamPlan | None, shape: Shape, num_micro_batches: float) -> StreamPlan | None:
    """Return the layers that come in a usual step, which come once for each of its groups of micro-batches.

    Args:
        coming: in a worst step; None: none are streamed.
        shape: of the worst step.
        num_micro_batches: of a usual step.
    """
    if coming is None:
        return None
    usual, worst = (math.ceil(number / shape.group_size) for number in (num_micro_batches, shape.num_micro_batches))
    num_bytes, seconds = coming.step_bytes * usual // worst, coming.step_seconds * usual / worst
    return coming.model_copy(update={"step_bytes": num_bytes, "step_seconds": seconds})


def rank_of(case: Case, tape: Tape, streamed: Streamed | None) -> tuple[Counts, RankShare]:
    """Return the weights of a model, and what one rank holds and sends of a step.

    Args:
        case: the run.
        tape: of the step.
        streamed: its layers that are streamed; None: none.
    """
    counts = Counts.of(tape.weights, case.run.dtype, streamed.left_bytes if streamed else 0)
    share = share_out(tape, case.run)
    if streamed:
        share = streamed.on_host(share, case.target.device_type)
    return counts, _with_activations(share, tape)


def _with_activations(share: RankShare, tape: Tape) -> RankShare:
    """Return a rank's share with the pinned memory in which activations wait; what the device has is on the tape."""
    pinned = sum(pinned_size(size) for sizes in tape.on_host.values() for size in sizes)
    return replace(share, host_bytes=share.host_bytes + pinned, pinned_bytes=share.pinned_bytes + pinned)
