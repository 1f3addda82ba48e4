"""The fastest configuration that fits, and for one that does not, the cheapest changes that would.

A candidate is priced by a prediction. Those that differ in the size of the micro-batch alone are a family: the two ends
are traced, the others are interpolated, and what is recommended is traced after all.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.config.rules import Force, broken_rules
from ftkit.config.tree import RunConfig
from ftkit.data.batching import Shape
from ftkit.engine.resolve import resolve
from ftkit.errors import FtkitError, ModelError
from ftkit.plan.architectures import find_architecture
from ftkit.plan.changes import SIZE, Changes, changed, grid, halves, steps_down, value_of
from ftkit.plan.interpolate import between
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.predicted import AnyPrediction, TracedPrediction
from ftkit.plan.shapes import Sequences, plan_shape, rank_share
from ftkit.plan.target import Target
from ftkit.records.schema import Basis, Verdict

_SHARING_KEYS = ("engine.zero_stage", "engine.offload_optimizer", "engine.offload_parameters")
TIGHT = 0.95
"""A recommendation leaves a twentieth of the device free: for other processes' contexts and libraries' workspaces."""
ALIKE = 1.03
"""A step that takes no more than this many times as long is as fast: predicted times order kernels no finer."""
NOTABLY = 1.02
"""A step that takes no more than this many times as long is as good, if it needs less memory."""


@dataclass(frozen=True)
class Candidate:
    """A configuration and what it needs.

    Attributes:
        config: the whole run.
        prediction: of it.
        changes: keys that differ from the one asked for, with their values.
    """

    config: RunConfig
    prediction: AnyPrediction
    changes: Changes

    @property
    def has_room(self) -> bool:
        """Whether it fits with something to spare."""
        return self.prediction.verdict is Verdict.FITS and self.needed_bytes <= TIGHT * self.prediction.budget_bytes

    @property
    def is_between(self) -> bool:
        """Whether it was read off between two that were traced."""
        return self.prediction.basis is Basis.INTERPOLATED

    @property
    def needed_bytes(self) -> int:
        """The memory of the process at its peak, as the system reports it."""
        return self.prediction.peak_process_bytes

    @property
    def seconds(self) -> float:
        """Of a step, with its part of what runs once; 0 for all of a model that a formula knows, which has no time."""
        if not isinstance(self.prediction, TracedPrediction):
            return 0.0
        trunk, epochs = self.prediction.trunk, self.config.training.epochs or 1.0
        once = 0.0 if trunk is None or trunk.is_done else trunk.seconds_per_step / epochs
        return self.prediction.step_seconds + once


def search(
    config: RunConfig,
    target: Target,
    architecture: Any = None,
    sequences: Sequences | None = None,
    tapes: Tapes | None = None,
    *,
    limit: int = 100,
) -> list[Candidate]:
    """Predict what can be changed without changing what is learned, and rank what fits by speed.

    Args:
        config: where the search starts; model, data, method's targets and global batch stay.
        target: the devices.
        architecture: of the model; found by its name when None.
        sequences: the data; None: not at hand.
        tapes: what was traced of this model before.
        limit: configurations that are predicted at most.

    Returns:
        Those that surely fit: first the simplest of those whose step takes hardly longer than the fastest's, then by
        speed; among equals the one with more room. The first is traced.
    """
    options = options_at(config, target, architecture, sequences, tapes)
    found = options.price(config, grid(config, target, sequences), limit)
    while True:
        found = ranked(one for one in found if one.has_room)
        if not found or not found[0].is_between:
            return found
        found[0] = options.confirm(found[0])


def confirmed(
    found: Sequence[Candidate], target: Target, architecture: Any = None, sequences: Sequences | None = None
) -> tuple[list[Candidate], AnyPrediction | None]:
    """Trace every layer of what a search found first, and of the next ones until one fits even so.

    Args:
        found: candidates, the best first.
        target: the devices.
        architecture: of the model; found by its name when None.
        sequences: the data; None: not at hand.

    Returns:
        The candidates without those that may not fit, and the exact prediction of the first; None where none is left.
    """
    for number, candidate in enumerate(found):
        checked = predict(candidate.config, target, architecture, sequences=sequences, exact=True)
        if checked.verdict is Verdict.FITS:
            return list(found[number:]), checked
    return [], None


def cures(
    config: RunConfig,
    target: Target,
    architecture: Any = None,
    sequences: Sequences | None = None,
    tapes: Tapes | None = None,
) -> list[Candidate]:
    """Return the changes, fewest and fastest first, that make a configuration fit.

    Args:
        config: what does not fit.
        target: the devices.
        architecture: of the model; found by its name when None.
        sequences: the data; None: not at hand.
        tapes: what was traced of this model before.

    Returns:
        At most three candidates; none where nothing helps.
    """
    singles = steps_down(config, target, sequences)
    pairs = [first | second for first, second in itertools.combinations(singles, 2) if not first.keys() & second.keys()]
    options = options_at(config, target, architecture, sequences, tapes)
    for changes in (singles, pairs):
        found = [one for one in options.price(config, changes, 24) if one.prediction.verdict is Verdict.FITS]
        if found:
            return [options.confirm(one) if one.is_between else one for one in _best_of_each_kind(found)[:3]]
    return []


def settled(
    config: RunConfig,
    target: Target,
    architecture: Any,
    sequences: Sequences | None = None,
    tapes: Tapes | None = None,
) -> RunConfig:
    """Settle `micro_batch_tokens: auto`: the smallest micro-batch among the fastest that fit.

    Bytes grow with the micro-batch almost along a line, so two small ones tell how large one may be.

    Args:
        config: the run.
        target: the devices.
        architecture: of the model.
        sequences: the data; None: not at hand.
        tapes: takes what was traced, so that a prediction of the choice need not trace again.

    Returns:
        The run with a number; one sequence at a time where nothing fits.
    """
    if config.batch.micro_batch_tokens != "auto":
        return config
    sequences = sequences or Sequences.unseen(config)
    share = rank_share(config, target.num_devices, sequences)
    tapes = tapes or Tapes()

    def tried(size: int) -> Candidate:
        changes = {"batch.micro_batch_tokens": size * sequences.longest}
        new = changed(config, changes)
        return Candidate(new, predict(new, target, architecture, sequences=sequences, tapes=tapes), changes)

    best = tried(1)
    if share == 1 or not best.has_room:
        return best.config
    slope = max(1, tried(2).needed_bytes - best.needed_bytes)
    largest = min(share, 1 + (int(TIGHT * target.memory_bytes) - best.needed_bytes) // slope)
    fitting = (one for one in map(tried, halves(largest)) if one.has_room)
    fastest: float | None = None
    for one in fitting:
        fastest = one.seconds if fastest is None else fastest
        if one.seconds > NOTABLY * fastest:
            break
        best = one
    return best.config


def options_at(
    config: RunConfig, target: Target, architecture: Any, sequences: Sequences | None, tapes: Tapes | None
) -> "Options":
    """Return the choices for a model at a target.

    Args:
        config: names the model.
        target: the devices.
        architecture: of the model; found by its name when None.
        sequences: the data; None: not at hand.
        tapes: what was traced of this model before.
    """
    architecture = find_architecture(config) if architecture is None else architecture
    return Options(target, architecture, sequences or Sequences.unseen(config), tapes or Tapes())


def _rank(candidate: Candidate) -> tuple[float, int]:
    return candidate.seconds, candidate.needed_bytes


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Order candidates: those that are hardly slower than the fastest by how much they change, the others by time.

    Args:
        candidates: in any order.

    Returns:
        The simplest of the fast ones first; of two that change as much the faster, then the one with more room.
    """
    by_time = sorted(candidates, key=_rank)
    limit = ALIKE * by_time[0].seconds if by_time else 0.0
    alike = [one for one in by_time if one.seconds <= limit]
    return sorted(alike, key=lambda one: (_complications(one.changes), *_rank(one))) + by_time[len(alike) :]


def _complications(changes: Changes) -> int:
    """Return how much of a run changes with some changes: offloading most, then sharing out, then all but the cut."""
    weights = {key: 4 if "offload" in key else 2 if key in _SHARING_KEYS else 1 for key in changes if key != SIZE}
    return sum(weight for key, weight in weights.items() if changes[key] not in (0, "none"))


def _best_of_each_kind(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return of the candidates that change the same things, cut aside, the best alone."""
    best: dict[str, Candidate] = {}
    for one in ranked(candidates):
        best.setdefault(repr({key: value for key, value in one.changes.items() if key != SIZE}), one)
    return list(best.values())


@dataclass(frozen=True)
class Options:
    """The choices of a search, at its target."""

    target: Target
    architecture: Any
    sequences: Sequences
    tapes: Tapes

    def price(self, config: RunConfig, options: Iterable[Changes], limit: int) -> list[Candidate]:
        """Predict the sound ones of some changes, `limit` at most.

        Those that differ in the size of the micro-batch alone are a family: its ends are traced, the others lie
        between.

        Raises:
            ModelError: the model goes with none of them.
        """
        families: dict[str, list[tuple[Shape, RunConfig, Changes]]] = defaultdict(list)
        for changes, new in itertools.islice(self._sound(config, options), limit):
            key = repr({name: value for name, value in changes.items() if name != SIZE})
            families[key].append((plan_shape(new, self.target.num_devices, self.sequences), new, changes))
        priced: list[Candidate] = []
        refused: list[ModelError] = []
        for family in families.values():
            try:
                priced += self._family(family)
            except ModelError as error:  # what this model does not go with, such as 4 bits without a linear layer
                refused.append(error)
        if refused and not priced:
            raise refused[0]
        return priced

    def confirm(self, candidate: Candidate) -> Candidate:
        """Return a candidate whose prediction was traced and not read off between two others."""
        return Candidate(candidate.config, self.predict(candidate.config), candidate.changes)

    def predict(self, config: RunConfig) -> AnyPrediction:
        """Predict a configuration."""
        return predict(config, self.target, self.architecture, sequences=self.sequences, tapes=self.tapes)

    def _sound(self, config: RunConfig, options: Iterable[Changes]) -> Iterator[tuple[Changes, RunConfig]]:
        """Yield the changes that work, that no rule advises against unless the user asked for that, each run once."""
        devices, seen = self.target.devices, set()
        asked = set(broken_rules(resolve(config, devices).facts, Force.UNWISE))
        for changes in options:
            try:
                new = changed(config, changes)
                run = resolve(new, devices)
            except FtkitError:
                continue  # a choice that the rest of the configuration does not go with
            rest = {key: value for key, value in changes.items() if key not in _SHARING_KEYS}
            same = repr((rest, run.zero_stage, run.offload_optimizer, run.offload_parameters))
            if same not in seen and asked.issuperset(broken_rules(run.facts, Force.UNWISE)):
                seen.add(same)
                yield {key: value for key, value in changes.items() if value_of(config, key) != value}, new

    def _family(self, family: list[tuple[Shape, RunConfig, Changes]]) -> Iterator[Candidate]:
        family.sort(key=lambda member: member[0].batch)
        ends = {shape.batch: self.predict(new) for shape, new, _ in (family[0], family[-1])}
        small, large = ends[family[0][0].batch], ends[family[-1][0].batch]
        for shape, new, changes in family:
            yield Candidate(new, ends.get(shape.batch) or between(small, large, shape), changes)
