"""The tape of a step: every storage's birth and death, in order, and what each operator computed and moved.

Storages are counted, not tensors: a view has no bytes of its own.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import accumulate

from ftkit.records.figures import Kind
from ftkit.step.observer import Phase

OpKey = tuple[str, int, int, str]
"""An operator's name, its FLOPs, the bytes that it reads and writes, and the dtype it computes in."""


Product = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""A product of matrices in half precision as a kernel is compiled for it: the operator's name, and the sizes and the
strides of its left and of its right side."""


class Untouched(int):
    """Bytes that an operator holds and hardly writes to: they take memory, and no time."""


LARGE_BUFFER = 2**20
"""Bytes of such a buffer that may move a peak; smaller ones, as those of a loss, do not."""


class Role(StrEnum):
    """What a storage is, where a recorder was told; what others are is judged by when they were born and died."""

    TRAINABLE = "trainable"  # a weight that trains
    PARAMETER = "parameter"  # a frozen weight
    CONSTANT = "constant"  # what unpacks a frozen weight in 4 bits
    INPUT = "input"  # of a micro-batch
    BUFFER = "buffer"
    GRADIENT = "gradient"
    OPTIMIZER = "optimizer"
    RETURNED = "returned"  # what a layer keeps, back from the host

    @property
    def kind(self) -> Kind:
        """The part of a breakdown that it belongs to."""
        return _KINDS.get(self) or Kind(self.value)


_KINDS = {
    Role.TRAINABLE: Kind.PARAMETER,
    Role.CONSTANT: Kind.PARAMETER,
    Role.INPUT: Kind.BUFFER,
    Role.RETURNED: Kind.ACTIVATION,
}


@dataclass(slots=True)
class Birth:
    """One storage.

    Attributes:
        size: bytes as requested.
        phase: what was going on when it was born.
        step: the optimizer step, from 1; 0 while loading.
        micro_batch: the micro-batch within the step, from 0.
        module: the innermost module whose forward ran.
        layer: the layer at work, counted from 0; None outside the layers.
        recomputed: born in a forward that ran during the backward.
        role: what it is, where somebody said so.
        op: the operator that made it.
        shape: of the first tensor that was seen on it; empty where there was none.
        dtype: of that tensor, such as `bfloat16`.
        stream: the CUDA stream whose memory it is from; 0: the default one.
    """

    size: int
    phase: Phase
    step: int
    micro_batch: int
    module: str
    layer: int | None
    recomputed: bool = False
    role: Role | None = None
    op: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    stream: int = 0

    def in_layer(self, layer: int | None) -> "Birth":
        """Return the like of it in another layer."""
        if type(self) is not Birth:
            return replace(self, layer=layer)
        # Field by field: `replace` takes several times as long, and a deep tape asks for each of its storages.
        return Birth(
            self.size, self.phase, self.step, self.micro_batch, self.module, layer,
            self.recomputed, self.role, self.op, self.shape, self.dtype, self.stream,
        )  # fmt: skip


@dataclass
class Tape:
    """The events of a step, in order.

    Attributes:
        births: storage number to its birth.
        events: (storage, layer at work) for a birth, (~storage, layer at work) for a death; read by `walk`, written
            by `begin` and `end`.
        marks: (position in `events`, name): the ends of phases.
        costs: (phase, step, layer) to how often each operator ran.
        products: phase to the products in half precision, one of each kind.
        recomputed_flops: (step, layer) to the FLOPs of forwards that ran again during the step's backward.
        weights: layer, or None for outside the layers, to (all weights, those that train).
        on_host: layer to the bytes of each storage that waits on the host between a forward and its backward.
        choices: layer to the facts by which a kernel was chosen for it, each once, such as those of an attention.
        unpadded: whether the layers run over tokens alone, and not over padding.
        window: (position in `events`, layers): the layers that the window of a streamed model holds from there on.
    """

    births: list[Birth] = field(default_factory=list)
    events: list[tuple[int, int | None]] = field(default_factory=list)
    marks: list[tuple[int, Phase]] = field(default_factory=list)
    costs: dict[tuple[Phase, int, int | None], Counter[OpKey]] = field(default_factory=dict)
    products: dict[Phase, set[Product]] = field(default_factory=dict)
    recomputed_flops: Counter[tuple[int, int | None]] = field(default_factory=Counter)
    weights: dict[int | None, tuple[int, int]] = field(default_factory=dict)
    on_host: dict[int | None, list[int]] = field(default_factory=dict)
    choices: dict[int | None, list[Hashable]] = field(default_factory=dict)
    unpadded: bool = False
    window: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def add(self, birth: Birth) -> int:
        """Take up a storage and return its number; it lives from `begin` to `end`."""
        self.births.append(birth)
        return len(self.births) - 1

    def begin(self, number: int, layer: int | None) -> None:
        """Write down that a storage is born."""
        self.events.append((number, layer))

    def end(self, number: int, layer: int | None) -> None:
        """Write down that a storage dies."""
        self.events.append((~number, layer))

    def walk(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bool, int | None]]:
        """Yield what happens between two positions in `events`.

        Args:
            start: the first event that is told.
            stop: the first that is not; None: the end.

        Yields:
            The number of a storage, whether it is born (else it dies), and the layer at work.
        """
        for event, layer in self.events[start:stop] if start or stop is not None else self.events:
            yield (event, True, layer) if event >= 0 else (~event, False, layer)

    def left(self, start: int = 0, stop: int | None = None) -> set[int]:
        """Return the storages that are born between two positions in `events`, and do not die there."""
        # Not by `walk`: a plan asks this of hundreds of thousands of events, and their tuples take a third longer.
        events = self.events[start:stop]
        return {event for event, _ in events if event >= 0}.difference(~event for event, _ in events if event < 0)

    @property
    def is_of_one_card(self) -> bool:
        """Whether large buffers follow from the multiprocessors of the card: those of sums over many rows."""
        return any(isinstance(birth.size, Untouched) and birth.size >= LARGE_BUFFER for birth in self.births)

    def live_bytes(self, round_to: Callable[[int], int] = int) -> Iterator[int]:
        """Return the live bytes after each event; `round_to` is what the allocator makes of a request."""
        sizes = [round_to(birth.size) for birth in self.births]
        return accumulate(sizes[event] if event >= 0 else -sizes[~event] for event, _ in self.events)

    def at_marks(self) -> list[tuple[Phase, int]]:
        """Return the live bytes after every phase: (name, bytes)."""
        live = [0, *self.live_bytes()]
        return [(name, live[place]) for place, name in self.marks]

    def model_flops(self, step: int) -> int:
        """Return the FLOPs of a step's forwards and backwards, without what checkpointing computes a second time."""
        counted = sum(
            flops * times
            for (phase, at, _), costs in self.costs.items()
            if at == step and phase in (Phase.FORWARD, Phase.BACKWARD)
            for (_, flops, _, _), times in costs.items()
        )
        return counted - sum(flops for (at, _), flops in self.recomputed_flops.items() if at == step)

    def peak_bytes(self) -> int:
        """Return the most bytes that were live at once."""
        return max(self.live_bytes(), default=0)
