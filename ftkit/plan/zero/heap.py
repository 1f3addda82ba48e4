"""The memory of one rank while its tape is written from the tape of the plain engine."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ftkit.observe.tape import Birth, OpKey, Role, Tape
from ftkit.plan.seconds.messages import Collective, Message
from ftkit.step.observer import Phase

FP32, FP64 = 4, 8
"""Bytes of an element."""


class Heap:
    """Writes a new tape from the tape of the plain engine.

    Attributes:
        tape: the new one, as far as it is written.
        phase, step: what is going on now, which new storages are born in.
        messages: what this rank and the others send in each phase of each step.
    """

    def __init__(self, plain: Tape) -> None:
        """Start with nothing.

        Args:
            plain: the tape of the plain engine, whose storages are copied one by one.
        """
        costs = dict(plain.costs)  # a stage replaces some of the counters, and changes none
        self.tape = Tape(
            costs=costs, recomputed_flops=plain.recomputed_flops, choices=plain.choices,
            products=plain.products, unpadded=plain.unpadded,
        )  # fmt: skip
        self.phase, self.step = Phase.LOAD, 0
        self._plain = plain
        self._numbers: dict[int, int] = {}  # of a plain storage that lives, to its number on the new tape
        self._waiting: set[int] = set()
        self.messages: dict[tuple[Phase, int], Counter[Message]] = defaultdict(Counter)
        self._own: set[tuple[Phase, int]] = set()  # phases and steps whose counters are not the plain engine's

    def computes(self, operator: OpKey, times: int = 1) -> None:
        """Add an operator that the plain engine does not run."""
        place = self.phase, self.step, None
        if place[:2] not in self._own:
            self._own.add(place[:2])
            self.tape.costs[place] = Counter(self.tape.costs.get(place))
        self.tape.costs[place][operator] += times

    def sends(self, collective: Collective, num_bytes: int, times: int = 1) -> None:
        """Add a message that all ranks take part in.

        Args:
            collective: how.
            num_bytes: of the whole tensor; nothing is sent of an empty one.
            times: how many of them.
        """
        if num_bytes:
            self.messages[self.phase, self.step][Message(collective, num_bytes)] += times

    def share_update(self, ranks: int, *, has_norm: bool = True) -> None:
        """Leave a rank its part of the update that the plain engine computes, of a flat tensor in the place of many.

        Args:
            ranks: that share it.
            has_norm: whether the norm of gradients is taken as the plain engine takes it.
        """
        flops: Counter[tuple[str, str]] = Counter()
        bytes_moved: Counter[tuple[str, str]] = Counter()
        for phase, step, layer in list(self.tape.costs):
            if phase is Phase.OPTIMIZER and step == self.step:
                for (name, computed, moved, dtype), times in self.tape.costs.pop((phase, step, layer)).items():
                    if has_norm or not name.startswith("linalg_vector_norm"):
                        flops[name, dtype] += times * computed
                        bytes_moved[name, dtype] += times * moved
        place = Phase.OPTIMIZER, self.step, None
        self._own.add(place[:2])
        self.tape.costs[place] = Counter(
            {(name, flops[name, dtype], moved // ranks, dtype): 1 for (name, dtype), moved in bytes_moved.items()}
        )

    def born(self, size: int, role: Role = Role.BUFFER) -> int | None:
        """Add a storage that the plain engine does not have.

        Args:
            size: bytes.
            role: what it is.

        Returns:
            Its number, which `died` takes; None for one of no bytes, which is not written down.
        """
        return self._born(Birth(size, self.phase, self.step, 0, "", None, role=role), None) if size else None

    def died(self, number: int | None) -> None:
        """End a storage that `born` added; None is nothing."""
        if number is not None:
            self.tape.end(number, None)

    def pass_by(self, *sizes: int) -> None:
        """Add storages that die as soon as all of them are there."""
        for number in [self.born(size) for size in sizes]:
            self.died(number)

    def copy(self, storage: int, size: int, layer: int | None, *, waits: bool = False) -> None:
        """Give birth to a storage of the plain engine.

        Args:
            storage: its number there.
            size: its bytes here.
            layer: at work now.
            waits: it is a gradient that `end_gradients` will end.
        """
        birth = self._plain.births[storage]
        self._numbers[storage] = self._born(birth if size == birth.size else replace(birth, size=size), layer)
        if waits:
            self._waiting.add(storage)

    def end(self, storage: int, layer: int | None) -> None:
        """End a storage of the plain engine, unless it has never been here or has been ended before."""
        if storage in self._numbers:
            self.tape.end(self._numbers.pop(storage), layer)

    def end_gradients(self) -> Iterator[int]:
        """End the gradients that wait, in the order of their births; yield the elements of each."""
        for storage in sorted(self._waiting & self._numbers.keys()):
            self.end(storage, None)
            yield self._plain.births[storage].size // FP32
        self._waiting.clear()

    def partition(self, sizes: Mapping[int, int]) -> None:
        """Replace weights of the plain engine by parts of them, one after another.

        A weight that is not here, because it was loaded into other memory, comes for the moment of its replacement.

        Args:
            sizes: number of a storage to the bytes of its part; 0 where the part does not stay here.
        """
        for storage, size in sizes.items():
            layer = self._plain.births[storage].layer
            if storage not in self._numbers:
                self.copy(storage, self._plain.births[storage].size, layer)
            whole = self._numbers.pop(storage)
            if size:
                self.copy(storage, size, layer)
            self.died(whole)

    def end_phase(self) -> None:
        """Mark the end of the phase."""
        self.tape.marks.append((len(self.tape.events), self.phase))

    def _born(self, birth: Birth, layer: int | None) -> int:
        number = self.tape.add(birth)
        self.tape.begin(number, layer)
        return number
