"""Expand the trace of a few layers into one of the full depth; identical neighbourhoods behave identically.

What a layer does on the tape depends on its kind and on the kinds of the layers before and after it: its neighbourhood.
So a few layers, among them at least one with every neighbourhood, determine the tape of any depth, event by event;
nothing is fitted. Where two layers with one neighbourhood did not do the same, there is no such tape, and the model has
to be traced whole.

An example: 32 layers, the first one dense (d) and the others mixtures of experts (m). Four neighbourhoods occur, the
third of them 29 times:

    layer           0          1          2 to 30     31
    kind            d          m          m           m
    neighbourhood   (, d, m)   (d, m, m)  (m, m, m)   (m, m, )

`keep_layers` keeps five: 0, 1, 29, 30 and 31. Two of the many stay, so that the shallow model shows what one of them
does to its own like: which storage of the layer before it ends, for instance. The shallow model has the layers

    shallow         0          1          2           3           4
    stands for      0          1                      2 to 30     31

Its tape is cut into runs: events of one layer, one after another. Runs that follow one another up or down the layers
are a pass, such as the forward, 0 1 2 3 4, or the backward, 4 3 2 1 0. `unroll` writes each pass anew over 32 layers,
each with the run of the layer that stands for it: 0 1 3 3 3 ... 3 4. An event names its storage by where that belongs,
as seen from the layer at work: "what the layer one below me made as the second `mul` of this forward". Read in layer
3 that is a storage of shallow layer 2; read in the deep layer 17, which layer 3 stands for, it is one of layer 16.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ftkit.observe.tape import Tape
from ftkit.step.observer import Phase

_Label = int
"""The name of a storage among those of its layer, the same in every layer: born in a phase of a micro-batch by an
operator, as the nth."""


class Event(NamedTuple):
    """A birth or death on the shallow tape.

    Attributes:
        storage: its number there.
        is_birth: or else its death.
        home: the shallow layer that the storage belongs to; None: none.
        label: which of its layer's storages it is.
    """

    storage: int
    is_birth: bool
    home: int | None
    label: _Label


@dataclass
class _Run:
    """Events of one layer, one after another.

    Attributes:
        layer: None: outside the layers.
        events: in their order.
        marks: the phases that end with it.
    """

    layer: int | None
    events: list[Event] = field(default_factory=list)
    marks: list[Phase] = field(default_factory=list)

    def homes(self) -> set[int | None]:
        """Return the shallow layers that its storages belong to."""
        return {event.home for event in self.events}

    def relative(self) -> list[tuple[bool, int | None, _Label]]:
        """Return its events with distances in layers: equal in layers that behave identically."""
        away = {home: home if home is None or self.layer is None else home - self.layer for home in self.homes()}
        return [(event.is_birth, away[event.home], event.label) for event in self.events]


@dataclass
class _Pass:
    """Runs that follow one another through the layers, or one run outside them.

    Attributes:
        runs: in their order.
        direction: 1: up, -1: down; 0: there is one run.
    """

    runs: list[_Run]
    direction: int = 0


class NotAlikeError(Exception):
    """Two layers that should be alike are not: trace the model whole."""


def neighbourhoods(kinds: Sequence[Hashable]) -> list[Hashable]:
    """Return what each layer is together with the layers before and after it; beyond the ends is nothing.

    Args:
        kinds: what each layer is.
    """
    edged = ["begin", *kinds, "end"]
    return [(edged[number], kind, edged[number + 2]) for number, kind in enumerate(kinds)]


def keep_layers(kinds: Sequence[Hashable]) -> list[int]:
    """Choose the layers of the shallow model.

    Args:
        kinds: what each layer of the deep model is.

    Returns:
        The numbers of the layers to keep, in order: every neighbourhood that occurs, twice where it occurs twice.
    """
    kept = list(range(len(kinds)))
    wanted = {one: min(2, count) for one, count in Counter(neighbourhoods(kinds)).items()}
    while (stretch := _superfluous(neighbourhoods([kinds[number] for number in kept]), wanted)) is not None:
        del kept[stretch]
    return kept


def _superfluous(around: Sequence[Hashable], wanted: dict[Hashable, int]) -> slice | None:
    """Return the first stretch of layers that can go: what follows it looks as its beginning did, and enough is left.

    Args:
        around: the neighbourhoods of the layers that are left.
        wanted: how many of each must stay.
    """
    counts = Counter(around)
    seen: dict[Hashable, list[int]] = defaultdict(list)
    for end, one in enumerate(around):
        for start in seen[one]:
            removed = Counter(around[start:end])
            if all(counts[other] - removed[other] >= wanted[other] for other in removed):
                return slice(start, end)
        seen[one].append(end)
    return None


def unroll(tape: Tape, kept: Sequence[int], kinds: Sequence[Hashable]) -> Tape:
    """Return the tape of the deep model.

    Args:
        tape: of the shallow model, whose layers are `kept`.
        kept: what `keep_layers` chose.
        kinds: what each layer of the deep model is.

    Returns:
        Births, events and marks as a whole trace would have them; costs of the operators added up per layer.

    Raises:
        NotAlikeError: the layers are not alike enough.
    """
    if len(kept) == len(kinds):
        return tape
    shallow = [kinds[number] for number in kept]
    runs = _runs(tape)
    _check_alike(runs, shallow)
    stand_ins = representatives(shallow, kinds)
    deep = _Deep(tape, stand_ins)
    for one in _passes(runs, len(kept)):
        deep.write(one)
    copies: dict[int | None, list[int | None]] = defaultdict(list, {None: [None]})
    for number, representative in enumerate(stand_ins):
        copies[representative].append(number)
    deep.tape.costs = {(phase, step, to): costs for (phase, step, of), costs in tape.costs.items() for to in copies[of]}
    deep.tape.recomputed_flops = Counter(
        {(step, to): flops for (step, of), flops in tape.recomputed_flops.items() for to in copies[of]}
    )
    deep.tape.unpadded, deep.tape.products = tape.unpadded, tape.products
    deep.tape.weights = {to: weights for of, weights in tape.weights.items() for to in copies[of]}
    deep.tape.on_host = {to: sizes for of, sizes in tape.on_host.items() for to in copies[of]}
    deep.tape.choices = {to: choices for of, choices in tape.choices.items() for to in copies[of]}
    return deep.tape


def representatives(shallow: Sequence[Hashable], deep: Sequence[Hashable]) -> list[int]:
    """Return for each deep layer the shallow layer that stands for it: the last one with its neighbourhood.

    Args:
        shallow: what each layer of the shallow model is.
        deep: what each layer of the deep model is.
    """
    place = {one: number for number, one in enumerate(neighbourhoods(shallow))}
    return [place[one] for one in neighbourhoods(deep)]


def _runs(tape: Tape) -> list[_Run]:
    """Cut the events into runs, also where a phase ends; every storage is named by its layer and its label there."""
    counts: Counter[tuple[object, ...]] = Counter()
    labels: dict[tuple[object, ...], _Label] = {}  # numbers, since a tuple with a phase takes long to look up
    names: dict[int, tuple[int | None, _Label]] = {}
    runs: list[_Run] = []
    ends: dict[int, _Run] = {}
    cuts = {place for place, _ in tape.marks}
    for place, (storage, is_birth, layer) in enumerate(tape.walk()):
        if is_birth:
            birth = tape.births[storage]
            kind = (birth.phase, birth.step, birth.micro_batch, birth.op)
            number = counts[birth.layer, kind]
            names[storage] = birth.layer, labels.setdefault((*kind, number), len(labels))
            counts[birth.layer, kind] += 1
        if not runs or runs[-1].layer != layer or place in cuts:
            runs.append(_Run(layer))
        runs[-1].events.append(Event(storage, is_birth, *names[storage]))
        ends[place + 1] = runs[-1]
    for place, phase in tape.marks:
        ends[place].marks.append(phase)
    return runs


def _check_alike(runs: Sequence[_Run], shallow: Sequence[Hashable]) -> None:
    """Check that shallow layers with the same neighbourhood have the same runs."""
    seen: dict[Hashable, list[list[tuple[bool, int | None, _Label]]]] = {}
    for number, around in enumerate(neighbourhoods(shallow)):
        own = [run.relative() for run in runs if run.layer == number]
        if seen.setdefault(around, own) != own:
            raise NotAlikeError(f"layers with the neighbourhood {around} differ")


def _passes(runs: Sequence[_Run], num_layers: int) -> list[_Pass]:
    """Group runs into passes.

    A pass goes from layer to layer in one direction and is over when it would turn, skip a layer or leave them: the
    backward that follows a forward begins with the layer in which that ended, so it is a pass of its own.
    """
    passes: list[_Pass] = []
    for run in runs:
        last = passes[-1].runs[-1].layer if passes else None
        step = 0 if run.layer is None or last is None else run.layer - last
        goes_on = abs(step) == 1 and passes[-1].direction in (0, step) and len(passes[-1].runs) < num_layers
        if goes_on:
            passes[-1].runs.append(run)
            passes[-1].direction = step
        else:
            passes.append(_Pass([run]))
    return passes


class _Deep:
    """Writes the deep tape."""

    def __init__(self, shallow: Tape, representatives: Sequence[int]) -> None:
        self.tape = Tape()
        self._shallow, self._representatives, self._num_shallow = shallow, representatives, max(representatives) + 1
        self._numbers: dict[tuple[int | None, _Label], int] = {}

    def write(self, one: _Pass) -> None:
        """Write a pass, and the marks at its end."""
        layers = {run.layer: run for run in one.runs}
        if None in layers:
            self._write(layers[None], None)
        elif one.direction == 0:
            self._write_alone(one.runs[0])
        else:
            order = range(len(self._representatives))[:: one.direction]
            for deep in order:
                if (run := layers.get(self._representatives[deep])) is not None:
                    self._write(run, deep)
        self.tape.marks += [(len(self.tape.events), phase) for run in one.runs for phase in run.marks]

    def _write_alone(self, run: _Run) -> None:
        """Write the run of one layer alone, such as a death at the very end of its neighbour's pass.

        Only a layer at one of the ends may do that, or all layers where all are alike: of others nobody knows which.
        """
        places = [deep for deep, representative in enumerate(self._representatives) if representative == run.layer]
        if len(places) != 1 and len(set(self._representatives)) > 1:
            raise NotAlikeError(f"layer {run.layer} alone")
        for deep in places:
            self._write(run, deep)

    def _write(self, run: _Run, deep: int | None) -> None:
        births, tape, numbers = self._shallow.births, self.tape, self._numbers
        homes = {home: self._deep_home(home, run.layer, deep) for home in run.homes()}
        for storage, is_birth, home, label in run.events:
            layer = homes[home]
            if is_birth:
                numbers[layer, label] = number = tape.add(births[storage].in_layer(layer))
                tape.begin(number, deep)
            else:
                if (layer, label) not in numbers:
                    raise NotAlikeError(f"a {births[storage].op} of layer {layer} dies unborn")
                tape.end(numbers.pop((layer, label)), deep)

    def _deep_home(self, home: int | None, seen_from: int | None, deep: int | None) -> int | None:
        """Return the layer of the deep model that a shallow one is, as seen from a deep layer.

        Args:
            home: the shallow layer.
            seen_from: the shallow layer that stands for the deep one; None: outside the layers.
            deep: the deep layer; None: outside.
        """
        if home is None:
            return None
        if seen_from is None or deep is None:
            # Outside the layers, such as in the embedding or the loss, only the layers at the two ends are seen.
            num_shallow, num_deep = self._num_shallow, len(self._representatives)
            return home if home < num_shallow / 2 else home - num_shallow + num_deep
        return deep + home - seen_from
