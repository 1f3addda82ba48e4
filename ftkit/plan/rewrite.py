"""A tape written anew: some storages shrunk or left out, others added, a window of gathered weights moved over it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ftkit.plan.tape import BACKWARD, LOAD, OPTIMIZER, Birth, Tape
from ftkit.plan.visits import GRADIENT, SUMMED, Visit
from ftkit.plan.window import Storages, Window

Entries = list[tuple[str, int]]
"""Pairs of role and bytes."""


@dataclass
class Changes:
    """What is added to a tape, and how its own storages shrink.

    Attributes:
        scale: storage to the factor of its size; 0 takes it out.
        parts: storage to the bytes of its partition, which takes its place when loading ends.
        at_load: held from the start.
        in_backward: held during every backward.
        until_update: held from the first gradient of a step to its update.
        at_backward_end: bytes that the last reduction needs for a moment.
        before_update: bytes that each update needs for a moment before it, one after another.
        in_update: held during every update.
        from_first_update: made by the first step and kept.
        window: makes the window of gathered weights, which gets its storages from what it is given.
        gradients: storages that a window's bucket takes over.
    """

    scale: dict[int, float] = field(default_factory=dict)
    parts: dict[int, int] = field(default_factory=dict)
    at_load: Entries = field(default_factory=list)
    in_backward: Entries = field(default_factory=list)
    until_update: Entries = field(default_factory=list)
    at_backward_end: int = 0
    before_update: list[int] = field(default_factory=list)
    in_update: Entries = field(default_factory=list)
    from_first_update: Entries = field(default_factory=list)
    window: Callable[[Storages], Window] | None = None
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
        self.is_summing = False
        self.live_gradients: set[int] = set()

    def write(self) -> Tape:
        marks = [*self.old.marks, (-1, "")]
        turn = 0
        for place in range(len(self.old.events) + 1):
            while place == marks[turn][0]:
                self._end_phase(marks[turn][1])
                turn += 1
                self.phase = marks[turn][1]
                if self.phase == OPTIMIZER:
                    self._begin_update()
            if place < len(self.old.events):
                if _is_first_gradient(self.old, place):
                    self._hold("backward", self.changes.in_backward)
                    self._hold("sums", self.changes.until_update)
                self._copy(place)
        return self.new

    def born(self, size: int) -> int:
        """Add a storage here and now."""
        return self._born(Birth(size, self.phase, self.step, 0, "", None, role="buffer"), None)

    def died(self, number: int) -> None:
        """End a storage that was added."""
        self.new.events.append((~number, None))

    def _begin_update(self) -> None:
        if self.window:
            self.window.end_step()
        for size in self.changes.before_update:
            self.died(self.born(size))
        self._hold("update", self.changes.in_update)

    def _end_phase(self, name: str) -> None:
        if name == LOAD:
            self._partition()
            self._hold("load", self.changes.at_load)
            self.step = 1
        if name == BACKWARD:
            self._hold("backward", self.changes.in_backward)  # where only what is above the layers has a gradient
            self._hold("sums", self.changes.until_update)
            if self.changes.at_backward_end:
                self.died(self.born(self.changes.at_backward_end))
            self._drop("backward")
            if self.window:
                self.window.end_backward()
        if name == OPTIMIZER:
            self._drop("sums")
            self._hold("moments", self.changes.from_first_update)
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


def _is_first_gradient(tape: Tape, place: int) -> bool:
    """Return whether the backward is in the layers: the loss's own backward makes no gradient of a weight."""
    event, layer = tape.events[place]
    return layer is not None and event >= 0 and tape.births[event].phase == BACKWARD
