"""What a tape of real tensors says: the peak of each phase, what lives at the worst moment, the timeline of a step.

The tape is the planner's (`ftkit/plan/tape.py`), so that a plan and a profile count by the same rules.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ftkit.plan.tape import LOAD, OPTIMIZER, Tape
from ftkit.plan.timeline import kinds, live_at
from ftkit.records import LiveTensor, MemoryBreakdown, TimelineLine

_POINTS = 600
_LARGEST = 10


@dataclass(frozen=True)
class Moment:
    """The live bytes after an event of a tape."""

    place: int
    phase: str
    by_kind: tuple[int, ...]

    @property
    def total(self) -> int:
        """The live bytes of all kinds."""
        return sum(self.by_kind)


def moments(tape: Tape, names: Sequence[str], order: Sequence[str]) -> Iterator[Moment]:
    """Walk through a tape.

    Args:
        tape: of whole steps.
        names: the kind of each storage.
        order: the kinds, in the order of `by_kind`.

    Yields:
        What lives after each event, by kind.
    """
    live = [0] * len(order)
    index = {kind: position for position, kind in enumerate(order)}
    ends = [*tape.marks, (len(tape.events), tape.marks[-1][1] if tape.marks else "")]
    current = 0
    for place, (event, _) in enumerate(tape.events):
        while ends[current][0] <= place:
            current += 1
        storage = event if event >= 0 else ~event
        size = tape.births[storage].size
        live[index[names[storage]]] += size if event >= 0 else -size
        yield Moment(place, ends[current][1], tuple(live))


@dataclass(frozen=True)
class CountedPeak:
    """The moment of a phase at which most bytes live, the first of several.

    Attributes:
        active_bytes: how many.
        breakdown: what they are.
        largest: the ten largest storages then, the largest first.
    """

    active_bytes: int
    breakdown: MemoryBreakdown
    largest: tuple[LiveTensor, ...]


def phase_peaks(tape: Tape, layers: Mapping[str, int]) -> dict[str, CountedPeak]:
    """Return the peak of each phase, over all steps.

    Args:
        tape: of whole steps.
        layers: module name of a layer to its number on the tape.

    Returns:
        Phase to its peak, in the order in which the phases began.
    """
    names = kinds(tape)
    order = sorted(set(names))
    highest: dict[str, Moment] = {}
    for moment in moments(tape, names, order):
        known = highest.get(moment.phase)
        if known is None or moment.total > known.total:
            highest[moment.phase] = moment
    return {
        phase: CountedPeak(
            moment.total,
            MemoryBreakdown(**{f"{kind}_bytes": size for kind, size in zip(order, moment.by_kind, strict=True)}),
            _largest(tape, names, moment.place, layers),
        )
        for phase, moment in highest.items()
    }


def _largest(tape: Tape, names: Sequence[str], place: int, layers: Mapping[str, int]) -> tuple[LiveTensor, ...]:
    """Return the largest storages that live after the event at `place`."""
    modules = {number: name for name, number in layers.items()}
    largest = sorted(live_at(tape, place), key=lambda storage: (-tape.births[storage].size, storage))[:_LARGEST]
    return tuple(
        LiveTensor(
            num_bytes=birth.size,
            kind=names[storage],
            module=birth.module or modules.get(-1 if birth.layer is None else birth.layer, "outside the layers"),
            op=birth.op,
            shape=birth.shape,
            dtype=birth.dtype,
        )
        for storage in largest
        for birth in [tape.births[storage]]
    )


def timeline(tape: Tape, step: int, rank: int, layers: Mapping[str, int]) -> TimelineLine:
    """Return the last step of a tape, thinned to what a screen can show; the highest moment of each stretch is kept.

    Args:
        tape: of whole steps; what it has of loading is left out.
        step: what that step is called, from 1.
        rank: of this process.
        layers: module name of a layer to its number on the tape.

    Returns:
        The live bytes by kind.
    """
    names = kinds(tape)
    order = sorted(set(names))
    ends = [place for place, name in tape.marks if name == OPTIMIZER]
    begins = [place for place, name in tape.marks if name in (LOAD, OPTIMIZER) and place < ends[-1]]
    begin, end = max(begins, default=0), ends[-1]
    within = [moment for moment in moments(tape, names, order) if begin <= moment.place < end]
    stride = max(1, len(within) // _POINTS)
    stretches = [within[first : first + stride] for first in range(0, len(within), stride)]
    kept = [max(stretch, key=lambda moment: moment.total) for stretch in stretches]
    return TimelineLine(
        step=step,
        rank=rank,
        events=tuple(moment.place - begin for moment in kept),
        phases=tuple(moment.phase for moment in kept),
        live_bytes={kind: tuple(moment.by_kind[index] for moment in kept) for index, kind in enumerate(order)},
        largest_tensors=_largest(tape, names, max(within, key=lambda moment: moment.total).place, layers),
    )
