"""Find the peaks of a tape: the worst moment of each phase, what it is made of, and the timeline of a step.

A plan and a profile read their tapes here, so that both count by the same rules.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from ftkit.observe.allocator import round_size
from ftkit.observe.tape import Birth, Tape
from ftkit.records.figures import Kind, LiveTensor, MemoryBreakdown
from ftkit.records.schema import TimelineLine
from ftkit.step.observer import Phase

_POINTS = 600
_LARGEST = 10
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""In the path of a module; the first is that of its layer."""


@dataclass(frozen=True)
class Peak:
    """The worst moment.

    Attributes:
        active_bytes: live storages, rounded as the allocator rounds them.
        breakdown: its parts.
        phase: what was going on.
        step: the optimizer step, from 1.
        module: the innermost module at work, empty where none is.
        layer: the layer at work, from 0.
    """

    active_bytes: int
    breakdown: MemoryBreakdown
    phase: Phase
    step: int
    module: str
    layer: int | None


def kinds(tape: Tape) -> list[Kind]:
    """Return for each storage the part of a breakdown that it belongs to, judged by when it was born and died.

    What a forward leaves behind for the backward is an activation, and so is what a recomputation makes; what a
    backward leaves behind is a gradient; what the optimizer leaves behind, or made while loading, is its
    state. The rest is temporary.
    """
    survived = _survivors(tape)
    return [_kind(number, birth, survived) for number, birth in enumerate(tape.births)]


def find_peak(tape: Tape, rounding: Callable[[int], int] = round_size) -> Peak:
    """Return the worst moment of a tape.

    Args:
        tape: of whole steps.
        rounding: bytes asked to bytes taken; the CUDA allocator's by default.

    Returns:
        The first moment at which most bytes were live.
    """
    worst, at = _worst_place(tape, rounding)
    if at < 0:
        return Peak(0, MemoryBreakdown(), Phase.LOAD, 0, "", None)
    parts: Counter[Kind] = Counter()
    survived = _survivors(tape)
    for storage in live_at(tape, at):
        birth = tape.births[storage]
        parts[_kind(storage, birth, survived)] += rounding(birth.size)
    ((number, _, layer),) = tape.walk(at, at + 1)
    last = tape.births[number]
    return Peak(worst, _breakdown(parts), last.phase, last.step, _module_in(last.module, layer), layer)


def _module_in(module: str, layer: int | None) -> str:
    """Return the path of a module with its own layer: an unrolled tape has that of the layer which stood for it."""
    return module if layer is None else NUMBER.sub(str(layer), module, count=1)


def peak_place(tape: Tape, rounding: Callable[[int], int] = round_size) -> int:
    """Return the position in a tape's events of the peak that `find_peak` finds; -1 where nothing lives."""
    return _worst_place(tape, rounding)[1]


def _worst_place(tape: Tape, rounding: Callable[[int], int]) -> tuple[int, int]:
    """Return the most bytes that live at once, and the first event after which they do."""
    live = list(tape.live_bytes(rounding))
    worst = max(live, default=0)
    return (worst, live.index(worst)) if worst > 0 else (0, -1)


def _breakdown(parts: Mapping[Kind, int]) -> MemoryBreakdown:
    return MemoryBreakdown(**{kind.field: size for kind, size in parts.items()})


def allocator_events(tape: Tape) -> list[tuple[int, int]]:
    """Return the tape as the allocator model reads it: (storage, bytes) for births, (storage, -1) for deaths."""
    return [
        (number, size if is_birth else -1) for number, is_birth, _ in tape.walk() if (size := tape.births[number].size)
    ]


def _survivors(tape: Tape) -> set[int]:
    """Return the storages that outlived the phase they were born in."""
    survived: set[int] = set()
    begin = 0
    for end in [*(place for place, _ in tape.marks), len(tape.events)]:
        survived |= tape.left(begin, end)
        begin = end
    return survived


def _kind(number: int, birth: Birth, survived: set[int]) -> Kind:
    if birth.role is not None:
        return birth.role.kind
    if birth.phase is Phase.LOAD:
        return Kind.OPTIMIZER
    if birth.recomputed or (birth.phase is Phase.FORWARD and number in survived):
        return Kind.ACTIVATION
    if number not in survived:
        return Kind.TEMPORARY
    return {Phase.BACKWARD: Kind.GRADIENT, Phase.OPTIMIZER: Kind.OPTIMIZER}.get(birth.phase, Kind.TEMPORARY)


def live_at(tape: Tape, place: int) -> set[int]:
    """Return the storages that live after the event at `place`."""
    return tape.left(0, place + 1)


@dataclass(frozen=True)
class Moment:
    """The live bytes after an event of a tape."""

    place: int
    phase: Phase
    by_kind: tuple[int, ...]

    @property
    def total(self) -> int:
        """The live bytes of all kinds."""
        return sum(self.by_kind)


def moments(tape: Tape, of_kind: Sequence[Kind], order: Sequence[Kind]) -> Iterator[Moment]:
    """Walk through a tape.

    Args:
        tape: of whole steps.
        of_kind: the kind of each storage.
        order: the kinds, in the order of `by_kind`.

    Yields:
        What lives after each event, by kind.
    """
    live = [0] * len(order)
    index = {kind: position for position, kind in enumerate(order)}
    ends = [*tape.marks, (len(tape.events), tape.marks[-1][1] if tape.marks else Phase.LOAD)]
    current = 0
    for place, (number, is_birth, _) in enumerate(tape.walk()):
        while ends[current][0] <= place:
            current += 1
        size = tape.births[number].size
        live[index[of_kind[number]]] += size if is_birth else -size
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


def phase_peaks(tape: Tape, layers: Mapping[str, int]) -> dict[Phase, CountedPeak]:
    """Return the peak of each phase, over all steps.

    Args:
        tape: of whole steps.
        layers: module name of a layer to its number on the tape.

    Returns:
        Phase to its peak, in the order in which the phases began.
    """
    of_kind = kinds(tape)
    order = sorted(set(of_kind))
    highest: dict[Phase, Moment] = {}
    for moment in moments(tape, of_kind, order):
        known = highest.get(moment.phase)
        if known is None or moment.total > known.total:
            highest[moment.phase] = moment
    return {
        phase: CountedPeak(
            moment.total,
            _breakdown(dict(zip(order, moment.by_kind, strict=True))),
            _largest(tape, of_kind, moment.place, layers),
        )
        for phase, moment in highest.items()
    }


def _largest(tape: Tape, of_kind: Sequence[Kind], place: int, layers: Mapping[str, int]) -> tuple[LiveTensor, ...]:
    """Return the largest storages that live after the event at `place`."""
    modules = {number: name for name, number in layers.items()}
    largest = sorted(live_at(tape, place), key=lambda storage: (-tape.births[storage].size, storage))[:_LARGEST]
    return tuple(
        LiveTensor(
            num_bytes=birth.size,
            kind=of_kind[storage],
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
    of_kind = kinds(tape)
    order = sorted(set(of_kind))
    ends = [place for place, name in tape.marks if name is Phase.OPTIMIZER]
    begins = [place for place, name in tape.marks if name in (Phase.LOAD, Phase.OPTIMIZER) and place < ends[-1]]
    begin, end = max(begins, default=0), ends[-1]
    within = [moment for moment in moments(tape, of_kind, order) if begin <= moment.place < end]
    stride = max(1, len(within) // _POINTS)
    stretches = [within[first : first + stride] for first in range(0, len(within), stride)]
    kept = [max(stretch, key=lambda moment: moment.total) for stretch in stretches]
    return TimelineLine(
        step=step,
        rank=rank,
        events=tuple(moment.place - begin for moment in kept),
        phases=tuple(moment.phase for moment in kept),
        live_bytes={kind: tuple(moment.by_kind[index] for moment in kept) for index, kind in enumerate(order)},
        window=tuple(_window_at(tape, moment.place) for moment in kept) if tape.window else (),
        largest_tensors=_largest(tape, of_kind, max(within, key=lambda moment: moment.total).place, layers),
    )


def _window_at(tape: Tape, place: int) -> tuple[int, ...]:
    """Return the layers that the window of a streamed model holds at a place of its tape."""
    known = bisect_right(tape.window, place, key=itemgetter(0))
    return tape.window[known - 1][1] if known else ()
