"""A tape written anew: some storages shrunk or left out, others added, a window of gathered weights moved over it."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from ftkit.observe.tape import BACKWARD, FORWARD, LOAD, OPTIMIZER, Birth, Tape
from ftkit.plan.zero.gather import FP32, FP64, Storages, Window
from ftkit.plan.zero.module_events import GRADIENT, SUMMED, Visit
from ftkit.step.observer import Phase

Entries = list[tuple[str, int]]
"""Pairs of role and bytes."""


@dataclass(frozen=True)
class Reduction:
    """How ZeRO-1 and 2 take gradients over: a bucket of them at a time is averaged over the ranks.

    Attributes:
        bucket: elements of a bucket.
        trained: elements of all gradients.
        bytes_per_element: that one reduction needs for a moment, for each element in its bucket.
        sums: bytes of the rank's sums, held from the first reduction of a step to its update.
        sums_come_first: whether they are there before the first reduction needs its bytes.
        later: bytes that each later micro-batch adds to them, held to the end of its backward.
        norm: bytes that the norm of the largest gradient needs for a moment, where norms are taken bucket by bucket.
        at_last: whether gradients are kept whole until the last micro-batch, and reduced then.
    """

    bucket: int
    trained: int
    bytes_per_element: int
    sums: int = 0
    sums_come_first: bool = True
    later: int = 0
    norm: int = 0
    at_last: bool = False


@dataclass
class Changes:
    """What is added to a tape, and how its own storages shrink.

    Attributes:
        scale: storage to the factor of its size; 0 takes it out.
        parts: storage to the bytes of its partition, which takes its place when loading ends.
        at_load: held from the start.
        in_backward: held from the first gradient of a backward to its end.
        until_update: held from the first gradient of a step to its update.
        at_last_backward: bytes that the end of a step's last backward needs for a moment.
        before_update: bytes that each update needs for a moment before it, one after another.
        in_update: held during every update.
        from_first_update: made by the first step and kept.
        window: makes the window of gathered weights, which gets its storages from what it is given.
        reduction: takes gradients over at stages 1 and 2.
        gradients: storages that the bucket of a window or of a reduction takes over.
    """

    scale: dict[int, float] = field(default_factory=dict)
    parts: dict[int, int] = field(default_factory=dict)
    at_load: Entries = field(default_factory=list)
    in_backward: Entries = field(default_factory=list)
    until_update: Entries = field(default_factory=list)
    at_last_backward: int = 0
    before_update: list[int] = field(default_factory=list)
    in_update: Entries = field(default_factory=list)
    from_first_update: Entries = field(default_factory=list)
    window: Callable[[Storages], Window] | None = None
    reduction: Reduction | None = None
    gradients: set[int] = field(default_factory=set)


def rewrite(tape: Tape, changes: Changes) -> Tape:
    """Return a tape with changes."""
    return _Writer(tape, changes).write()


class _Writer:
    """Copies a tape event by event."""

    def __init__(self, tape: Tape, changes: Changes) -> None:
        self.old, self.changes = tape, changes
        self.new = Tape(costs=tape.costs, recomputed_flops=tape.recomputed_flops)
        self.names: dict[int, int] = {}
        self.held: dict[str, list[int]] = {}
        self.phase, self.step = LOAD, 0
        self.window = changes.window(self) if changes.window else None
        self.reducer = _Reducer(changes.reduction, self) if changes.reduction else None
        self.is_summing = False
        self.num_backward_events = self.first_gradient = 0
        self.live_gradients: set[int] = set()

    def write(self) -> Tape:
        marks = [*self.old.marks, (-1, LOAD)]
        turn = 0
        for place in range(len(self.old.events) + 1):
            while place == marks[turn][0]:
                self._end_phase(marks[turn][1], is_last=marks[turn + 1][1] != FORWARD)
                turn += 1
                self.phase = marks[turn][1]
                if self.phase == OPTIMIZER:
                    self._begin_update()
            if place < len(self.old.events):
                if self.phase == BACKWARD:
                    self._watch_gradients(self.old.events[place][0])
                self._copy(place)
        return self.new

    def born(self, size: int, role: str = "buffer") -> int:
        """Add a storage here and now."""
        return self._born(Birth(size, self.phase, self.step, 0, "", None, role=role), None)

    def died(self, number: int) -> None:
        """End a storage that was added."""
        self.new.events.append((~number, None))

    def _watch_gradients(self, event: int) -> None:
        """Hold what comes with a backward's first gradient; later micro-batches add theirs where the first had it."""
        self.num_backward_events += 1
        if event in self.changes.gradients and "backward" not in self.held:
            self.first_gradient = self.num_backward_events
        if self.num_backward_events == self.first_gradient:
            self._hold("backward", self.changes.in_backward)
            self._hold("sums", self.changes.until_update)

    def _begin_update(self) -> None:
        if self.window:
            self.window.end_step()
        for size in self.changes.before_update:
            self.died(self.born(size))
        self._hold("update", self.changes.in_update)

    def _end_phase(self, name: Phase, *, is_last: bool) -> None:
        if name == LOAD:
            self._partition()
            self._hold("load", self.changes.at_load)
            self.step = 1
        if name == BACKWARD:
            self.num_backward_events = 0
            if is_last and self.changes.at_last_backward:
                self.died(self.born(self.changes.at_last_backward))
            if self.reducer:
                self.reducer.end_backward(self._taken() if is_last else [], is_last=is_last)
            if is_last or not (self.reducer and self.reducer.at_last):  # the bucket waits for the one reduction
                self._drop("backward")
            if self.window:
                self.window.end_backward()
        if name == OPTIMIZER:
            self._hold("moments", self.changes.from_first_update)
            self._drop("sums")
            if self.reducer:
                self.reducer.end_step()
            self._drop("update")
            self.step += 1
        self.new.marks.append((len(self.new.events), name))

    def _partition(self) -> None:
        """Replace whole weights, one after another; those that are loaded into other memory come for that moment."""
        for storage, size in self.changes.parts.items():
            birth = self.old.births[storage]
            whole = self.names.pop(storage) if storage in self.names else self._born(birth, birth.layer)
            if size:
                self.names[storage] = self._born(replace(birth, size=size), birth.layer)
            self.died(whole)

    def _hold(self, name: str, entries: Entries) -> None:
        """Give birth to what a change adds, unless it lives already."""
        if name not in self.held:
            births = [Birth(size, self.phase, self.step, 0, "", None, role=role) for role, size in entries]
            self.held[name] = [self._born(birth, None) for birth in births]

    def _drop(self, name: str) -> None:
        for number in self.held.pop(name, []):
            self.died(number)

    def _born(self, birth: Birth, layer: int | None) -> int:
        self.new.births.append(birth)
        self.new.events.append((len(self.new.births) - 1, layer))
        return len(self.new.births) - 1

    def _copy(self, place: int) -> None:
        event, layer = self.old.events[place]
        storage = event if event >= 0 else ~event
        birth = self.old.births[storage]
        if isinstance(birth, Visit):
            if event >= 0:
                self._visit(birth)
            return
        factor = self.changes.scale.get(storage, 1.0)
        if self.reducer and event >= 0 and storage in self.changes.gradients and not self.reducer.at_last:
            self.reducer.take(birth.size // FP32)
            return
        if factor == 0.0 or (self.is_summing and event >= 0):
            return
        if event < 0:
            if storage in self.names:
                self.new.events.append((~self.names.pop(storage), layer))
            return
        scaled = birth if factor == 1.0 else replace(birth, size=math.ceil(birth.size * factor))
        self.names[storage] = self._born(scaled, layer)
        if storage in self.changes.gradients:
            self.live_gradients.add(storage)

    def _taken(self) -> Iterator[int]:
        """End the gradients that were kept whole, in the order of their births; yield the elements of each."""
        for storage in sorted(self.live_gradients & self.names.keys()):
            self.died(self.names.pop(storage))
            yield self.old.births[storage].size // FP32
        self.live_gradients.clear()

    def _visit(self, visit: Visit) -> None:
        """Move the window; a gradient that is there ends in its bucket, and the plain engine's sum of it never was."""
        if visit.op == GRADIENT:
            self.is_summing = True
            for storage in self.live_gradients & self.names.keys():
                self.new.events.append((~self.names.pop(storage), None))
            self.live_gradients.clear()
        elif visit.op == SUMMED:
            self.is_summing = False
        if self.window:
            self.window.visit(visit)


class _Reducer:
    """Fills a bucket with gradients and reduces it."""

    def __init__(self, reduction: Reduction, writer: _Writer) -> None:
        self.at_last = reduction.at_last
        self._reduction, self._writer = reduction, writer
        self._filled = self._largest = 0
        self._sums: int | None = None

    def take(self, elements: int) -> None:
        """Put a gradient into the bucket, which is reduced first where there is no room for it."""
        if self._filled and self._filled + elements > self._reduction.bucket:
            self._reduce()
        self._filled += elements
        self._largest = max(self._largest, elements)

    def end_backward(self, kept: Iterable[int], *, is_last: bool) -> None:
        """Reduce what is left; after later micro-batches, whose gradients the tape only adds up, a full bucket."""
        for elements in kept:
            self.take(elements)
        if self.at_last and not is_last:
            return
        later = 0
        if not self._filled:
            self._filled = self._largest = min(self._reduction.bucket, self._reduction.trained)
            later = self._reduction.later if self._sums is not None else 0
        self._reduce()
        if later:
            self._writer.died(self._writer.born(later))

    def end_step(self) -> None:
        """Let the sums go."""
        if self._sums is not None:
            self._writer.died(self._sums)
            self._sums = None

    def _reduce(self) -> None:
        if self._reduction.sums_come_first:
            self._hold_sums()
        self._writer.died(self._writer.born(self._filled * self._reduction.bytes_per_element))
        self._hold_sums()
        if self._reduction.norm:
            self._writer.died(self._writer.born(min(self._reduction.norm, FP64 * self._largest)))
        self._filled = self._largest = 0

    def _hold_sums(self) -> None:
        if self._sums is None and self._reduction.sums:
            self._sums = self._writer.born(self._reduction.sums, "gradient")
