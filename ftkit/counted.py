"""What a tape of real tensors says: the peak of each phase, what lives at the worst moment, the timeline of a step.

The tape is the planner's (`ftkit/plan/tape.py`), so that a plan and a profile count by the same rules.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ftkit.plan.tape import BACKWARD, FORWARD, Tape
from ftkit.plan.timeline import kinds
from ftkit.records import LiveTensor, TimelineLine

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


def phase_peaks(tape: Tape) -> dict[str, int]:
    """Return the most live bytes of each phase, over all steps."""
    peaks: dict[str, int] = {}
    names = kinds(tape)
    for moment in moments(tape, names, sorted(set(names))):
        peaks[moment.phase] = max(peaks.get(moment.phase, 0), moment.total)
    return peaks


def largest_at_peak(tape: Tape) -> list[LiveTensor]:
    """Return the ten largest storages that live when most bytes do, the largest first."""
    names = kinds(tape)
    peak = max(moments(tape, names, sorted(set(names))), key=lambda moment: moment.total, default=None)
    alive: set[int] = set()
    for event, _ in tape.events[: peak.place + 1 if peak else 0]:
        if event >= 0:
            alive.add(event)
        else:
            alive.discard(~event)
    largest = sorted(alive, key=lambda storage: (-tape.births[storage].size, storage))[:_LARGEST]
    return [
        LiveTensor(
            num_bytes=tape.births[storage].size,
            kind=names[storage],
            module=tape.births[storage].module,
            op=tape.births[storage].op,
            shape=tape.births[storage].shape,
            dtype=tape.births[storage].dtype,
        )
        for storage in largest
    ]


def model_flops(tape: Tape, step: int) -> int:
    """Return the FLOPs of one step's forwards and backwards, without what checkpointing computes a second time."""
    counted = sum(
        flops * times
        for (phase, at, _), costs in tape.costs.items()
        if at == step and phase in (FORWARD, BACKWARD)
        for (_, flops, _, _), times in costs.items()
    )
    return counted - tape.recomputed_flops[step]


def timeline(tape: Tape, step: int, rank: int) -> TimelineLine:
    """Return one step of a tape, thinned to what a screen can show; the highest moment of each stretch is kept.

    Args:
        tape: of whole steps.
        step: which one, from 1.
        rank: of this process.

    Returns:
        The live bytes by kind.
    """
    names = kinds(tape)
    order = sorted(set(names))
    steps_end = [place for place, name in tape.marks if name == "optimizer"]
    begin, end = steps_end[step - 2] if step > 1 else 0, steps_end[step - 1]
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
    )
