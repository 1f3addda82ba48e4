"""A shallow trace told as a deep one: layers that are alike in a row of layers do alike.

A layer's part of the tape depends on what it is and on what stands before and after it. So a few layers, among them one
for every such surrounding, determine the tape of any depth, event by event; nothing is fitted. Where two layers with
the same surrounding did not do the same, there is no such tape, and the model must be traced whole.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ftkit.observe.tape import Tape
from ftkit.step.observer import Phase

Label = tuple[str, int, int, str, int]
"""Phase, step, micro-batch and operator of a birth, and which of those in its layer it is."""


class Reference(NamedTuple):
    """A storage as it is seen from an event.

    Attributes:
        home: the shallow layer that it belongs to; None: none.
        seen_from: the shallow layer of the event; None: none.
        label: which of its layer's storages it is.
    """

    home: int | None
    seen_from: int | None
    label: Label

    @property
    def relative(self) -> tuple[int | None, Label]:
        """Layers away and label: the same for layers that do alike."""
        if self.home is None or self.seen_from is None:
            return self.home, self.label
        return self.home - self.seen_from, self.label

    def deep_home(self, deep: int | None, num_shallow: int, num_deep: int) -> int | None:
        """Return the layer of the deep model that is meant, seen from its layer `deep`."""
        if self.home is None:
            return None
        if self.seen_from is None or deep is None:
            # From outside one sees the layers at the two ends.
            return self.home if self.home < num_shallow / 2 else self.home - num_shallow + num_deep
        return deep + self.home - self.seen_from


Entry = tuple[int, bool, Reference]
"""An event: the number of a storage of the shallow tape, whether it is born, and who it is."""


class NotAlikeError(Exception):
    """Two layers that should be alike are not: trace the model whole."""


def keep_layers(kinds: Sequence[Hashable]) -> list[int]:
    """Choose the layers of the shallow model.

    Args:
        kinds: what each layer of the deep model is.

    Returns:
        The numbers of the layers to keep, in order: every surrounding that occurs, twice where it occurs twice.
    """
    kept = list(range(len(kinds)))
    wanted = {context: min(2, count) for context, count in Counter(_contexts(kinds)).items()}
    shrunk = True
    while shrunk:
        shrunk = False
        contexts = _contexts([kinds[number] for number in kept])
        counts = Counter(contexts)
        last_seen: dict[Hashable, list[int]] = defaultdict(list)
        for end, context in enumerate(contexts):
            for start in last_seen[context]:
                removed = Counter(contexts[start:end])
                if all(counts[one] - removed[one] >= wanted[one] for one in removed):
                    del kept[start:end]
                    shrunk = True
                    break
            if shrunk:
                break
            last_seen[context].append(end)
    return kept


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
    templates = _templates(kept, kinds)
    runs = _runs(tape)
    _check_alike(runs, kept, kinds)
    deep = _Deep(tape, templates)
    marks = dict(_mark_runs(tape, runs))
    for group in _passes(runs, len(kept)):
        deep.emit(group, runs)
        for run in group:
            for name in marks.get(run, ()):
                deep.tape.marks.append((len(deep.tape.events), name))
    copies: dict[int | None, list[int | None]] = defaultdict(list, {None: [None]})
    for number, template in enumerate(templates):
        copies[template].append(number)
    deep.tape.costs = {
        (phase, step, to): counter for (phase, step, layer), counter in tape.costs.items() for to in copies[layer]
    }
    deep.tape.recomputed_flops = Counter(
        {(step, to): flops for (step, layer), flops in tape.recomputed_flops.items() for to in copies[layer]}
    )
    deep.tape.weights = {to: weights for layer, weights in tape.weights.items() for to in copies[layer]}
    return deep.tape


@dataclass
class _Run:
    """Consecutive events of one layer; `layer` None: outside the layers."""

    layer: int | None
    entries: list[Entry]
    end: int


class _Deep:
    """Writes the deep tape."""

    def __init__(self, shallow: Tape, templates: Sequence[int]) -> None:
        self.shallow, self.templates, self.num_shallow = shallow, templates, max(templates) + 1
        self.tape = Tape()
        self.numbers: dict[tuple[int | None, Label], int] = {}

    def emit(self, group: list[int], runs: list[_Run]) -> None:
        """Write one pass through the layers, or one run outside them."""
        by_layer = {runs[number].layer: runs[number] for number in group}
        if None in by_layer:
            self._write(by_layer[None], None)
            return
        first, last = runs[group[0]].layer, runs[group[-1]].layer
        order = range(len(self.templates))
        assert first is not None
        assert last is not None
        if len(group) == 1 and len(set(self.templates)) > 1:
            # One layer alone, such as a death at the very end of its neighbour's pass: only the ends may do that.
            places = [deep for deep, template in enumerate(self.templates) if template == first]
            if len(places) != 1:
                raise NotAlikeError(f"layer {first} alone")
            self._write(by_layer[first], places[0])
            return
        for deep in order if first <= last else reversed(order):
            if (run := by_layer.get(self.templates[deep])) is not None:
                self._write(run, deep)

    def _write(self, run: _Run, deep: int | None) -> None:
        for storage, is_birth, reference in run.entries:
            layer = reference.deep_home(deep, self.num_shallow, len(self.templates))
            key = (layer, reference.label)
            if is_birth:
                self.numbers[key] = len(self.tape.births)
                self.tape.births.append(replace(self.shallow.births[storage], layer=layer))
                self.tape.events.append((self.numbers[key], deep))
            else:
                if key not in self.numbers:
                    raise NotAlikeError(f"storage {reference.label} of layer {layer} dies unborn")
                self.tape.events.append((~self.numbers.pop(key), deep))


def _contexts(kinds: Sequence[Hashable]) -> list[Hashable]:
    """Return what each layer is together with its neighbours; the ends stand for themselves."""
    edged = ["begin", *kinds, "end"]
    return [(edged[number], kind, edged[number + 2]) for number, kind in enumerate(kinds)]


def _templates(kept: Sequence[int], kinds: Sequence[Hashable]) -> list[int]:
    """Return for each deep layer the shallow layer that tells its story; the ends tell their own."""
    shallow = _contexts([kinds[number] for number in kept])
    place = {context: number for number, context in enumerate(shallow)}
    return [place[context] for context in _contexts(kinds)]


def _runs(tape: Tape) -> list[_Run]:
    """Part the events into runs of one layer each, every storage named by its layer and its place there."""
    counts: Counter[tuple[int | None, Hashable]] = Counter()
    names: dict[int, tuple[int | None, Label]] = {}
    runs: list[_Run] = []
    cuts = {place for place, _ in tape.marks}
    for place, (event, layer) in enumerate(tape.events):
        storage = event if event >= 0 else ~event
        if event >= 0:
            birth = tape.births[storage]
            home, kind = birth.layer, (birth.phase, birth.step, birth.micro_batch, birth.op)
            names[storage] = (home, (*kind, counts[home, kind]))
            counts[home, kind] += 1
        home, label = names[storage]
        if not runs or runs[-1].layer != layer or place in cuts:
            runs.append(_Run(layer, [], place))
        runs[-1].entries.append((storage, event >= 0, Reference(home, layer, label)))
        runs[-1].end = place + 1
    return runs


def _check_alike(runs: list[_Run], kept: Sequence[int], kinds: Sequence[Hashable]) -> None:
    """Check that shallow layers with the same surrounding have the same runs."""
    contexts = _contexts([kinds[number] for number in kept])
    stories: dict[Hashable, list[list[tuple[bool, tuple[int | None, Label]]]]] = {}
    for number, context in enumerate(contexts):
        story = [[(born, who.relative) for _, born, who in run.entries] for run in runs if run.layer == number]
        if stories.setdefault(context, story) != story:
            raise NotAlikeError(f"layers of the kind {context} differ")


def _passes(runs: list[_Run], num_layers: int) -> list[list[int]]:
    """Group runs into passes: layers one after another, up or down; a run outside the layers is a group of its own."""
    groups: list[list[int]] = []
    for number, run in enumerate(runs):
        previous = runs[groups[-1][-1]].layer if groups else None
        if run.layer is None or previous is None:
            groups.append([number])
            continue
        step = run.layer - previous
        steps = {runs[b].layer - runs[a].layer for a, b in zip(groups[-1], groups[-1][1:], strict=False)}  # type: ignore[operator]
        if abs(step) == 1 and steps <= {step} and len(groups[-1]) < num_layers:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _mark_runs(tape: Tape, runs: list[_Run]) -> list[tuple[int, list[Phase]]]:
    """Return which run ends at each mark."""
    ends = {run.end: number for number, run in enumerate(runs)}
    found: dict[int, list[Phase]] = defaultdict(list)
    for place, name in tape.marks:
        found[ends[place]].append(name)
    return list(found.items())
