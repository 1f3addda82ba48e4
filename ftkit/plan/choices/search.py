"""The fastest configuration that fits, and for one that does not, the cheapest changes that would.

A candidate is priced by a prediction. Those that differ in the size of the micro-batch alone are a family: the two ends
are traced, the others are interpolated, as are those of which some layers recompute more, and what is recommended is
traced after all.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from ftkit.config.rules import Force, broken_rules
from ftkit.config.tree import RunConfig
from ftkit.data.batching import Shape
from ftkit.engine.resolve import resolve
from ftkit.errors import FtkitError, ModelError
from ftkit.models.methods import method_of
from ftkit.plan.choices.candidates import SHARING, Candidate, RefusedChange, best_of_each_kind, ranked
from ftkit.plan.choices.changes import (
    CUTS,
    LENGTH,
    METHOD,
    RECOMPUTE,
    Changes,
    changed,
    grid,
    steps_down,
    takes_fewer_bits,
    value_of,
)
from ftkit.plan.choices.interpolate import between
from ftkit.plan.choices.recompute import mixes
from ftkit.plan.inputs.architectures import find_architecture
from ftkit.plan.inputs.shapes import Sequences, plan_shape
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.weights import least_weight_bytes, weights_reason
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.predicted import AnyPrediction
from ftkit.records.schema import Verdict

_TOGETHER = 8
"""Micro-batches through a streamed layer together that are traced to tell of a family, where there are as few."""
_PAIRS = 24
"""Pairs of changes that are predicted at most where none makes a run fit alone."""


def search(config: RunConfig, options: "Options", *, limit: int = 100) -> list[Candidate]:
    """Predict what can be changed without changing what is learned, and rank what fits by speed.

    Args:
        config: where the search starts; model, data, method's targets and global batch stay.
        options: the model, the data and the target.
        limit: configurations that are predicted at most.

    Returns:
        Those that surely fit: first the simplest of those whose step takes hardly longer than the fastest's, then by
        speed; among equals the one with more room. The first is traced.
    """
    return options.best(options.price(config, grid(config, options.target, options.sequences), limit))


def confirmed(found: Sequence[Candidate], options: "Options") -> tuple[list[Candidate], AnyPrediction | None]:
    """Trace every layer of what a search found first, and of the next ones until one fits even so.

    Args:
        found: candidates, the best first.
        options: that they were found among.

    Returns:
        The candidates without those that may not fit, and the exact prediction of the first; None where none is left.
    """
    for number, candidate in enumerate(found):
        # Apart from the others, since the tape of all layers is large, and nobody asks for it again.
        checked = replace(options, tapes=Tapes()).predict(candidate.config, exact=True)
        if checked.verdict is Verdict.FITS:
            return list(found[number:]), checked
    return [], None


def cures(config: RunConfig, options: "Options") -> list[Candidate]:
    """Return the changes, fewest and fastest first, that make a configuration fit.

    Args:
        config: what does not fit.
        options: the model, the data and the target.

    Returns:
        At most three candidates that leave the mathematics as it is, and behind them those in fewer bits; none where
        nothing helps.
    """
    singles = steps_down(config, options.target, options.sequences)
    pairs = [first | second for first, second in itertools.combinations(singles, 2) if not first.keys() & second.keys()]
    fits = attrgetter("fits")
    exact, rounding = list[Candidate](), list[Candidate]()
    for changes, limit in (([{}, *singles], 1 + len(singles)), (pairs, _PAIRS)):
        priced = options.price(config, changes, limit)
        if any(map(fits, priced)):
            found = [*filter(fits, priced), *mixes(priced, options.num_layers, fits)]
            exact = [one for one in found if not takes_fewer_bits(one.changes)]
            rounding = [one for one in found if takes_fewer_bits(one.changes)]
            break
    if not any(METHOD in one.changes for one in rounding):
        rounding += options.in_fewer_bits(config, singles)
    return [one for kind in (exact, rounding) for one in best_of_each_kind(kind, options.confirm, fits)]


def options_at(
    config: RunConfig,
    target: Target,
    architecture: Any = None,
    sequences: Sequences | None = None,
    tapes: Tapes | None = None,
    *,
    is_cached: bool = False,
) -> "Options":
    """Return the choices for a model at a target.

    Args:
        config: names the model.
        target: the devices.
        architecture: of the model; found by its name when None.
        sequences: the data; None: not at hand.
        tapes: what was traced of this model before; None: nothing was.
        is_cached: whether the cache has all that a frozen trunk would make of the data.
    """
    architecture = find_architecture(config) if architecture is None else architecture
    return Options(target, architecture, sequences or Sequences.unseen(config), tapes or Tapes(), is_cached)


@dataclass(frozen=True)
class Options:
    """The choices of a search, at its target.

    Attributes:
        target: the devices.
        architecture: of the model.
        sequences: the data, or the worst that it can be.
        tapes: what was traced of the model before.
        is_cached: whether the cache has all that a frozen trunk would make of the data.
    """

    target: Target
    architecture: Any
    sequences: Sequences
    tapes: Tapes
    is_cached: bool = False

    @property
    def num_layers(self) -> int:
        """The layers of the model; 0 where it does not say."""
        return int(getattr(self.architecture, "num_hidden_layers", 0))

    def best(self, priced: Iterable[Candidate]) -> list[Candidate]:
        """Return those of some candidates that have room, and mixes of them, as `search` does."""
        priced = list(priced)
        found = [*priced, *mixes(priced, self.num_layers)]
        while True:
            found = ranked(one for one in found if one.has_room)
            if not found or not found[0].is_between:
                return found
            found[0] = self.confirm(found[0])

    def in_fewer_bits(self, config: RunConfig, singles: Sequence[Changes]) -> list[Candidate]:
        """Return the ways in which a run fits whose frozen weights are in 4 bits, with the least recomputing that does.

        Args:
            config: the run.
            singles: the single changes that save memory, of which the cut and the recomputing go with it.
        """
        cuts = [{}, *(one for one in singles if one.keys() <= {*CUTS})]
        levels = [{}, *(one for one in singles if one.keys() == {RECOMPUTE})]
        for method, level in itertools.product(method_of(config).cheaper(), levels):
            try:
                run = resolve(changed(config, method), self.target.devices)
                if weights_reason(self.target, least_weight_bytes(run, self.architecture)) is not None:
                    continue
                priced = self.price(config, [method | level | cut for cut in cuts], len(cuts))
            except FtkitError:  # the run, or its model, does not go with 4 bits
                continue
            if fitting := [one for one in priced if one.fits]:
                return fitting
        return []

    def price(self, config: RunConfig, options: Iterable[Changes], limit: int) -> list[Candidate]:
        """Predict the sound ones of some changes, `limit` at most.

        Those that differ in the size of the micro-batch alone are a family: its ends are traced, the others lie
        between.

        Args:
            config: the run that they change.
            options: the changes.
            limit: of those that are predicted.

        Raises:
            ModelError: the model goes with none of them.
        """
        priced, _, errors = self._price(config, options, limit)
        if errors and not priced:
            raise errors[0]
        return priced

    def _price(
        self, config: RunConfig, options: Iterable[Changes], limit: int
    ) -> tuple[list[Candidate], list[RefusedChange], list[ModelError]]:
        """Return what `price` does, what was refused, and the errors of the model, such as 4 bits without a linear."""
        refused: list[RefusedChange] = []
        families: dict[str, list[tuple[Shape, RunConfig, Changes]]] = defaultdict(list)
        for changes, new in itertools.islice(self._sound(config, options, refused), limit):
            key = repr({name: value for name, value in changes.items() if name not in CUTS})
            families[key].append((plan_shape(new, self.target.num_devices, self.sequences), new, changes))
        priced: list[Candidate] = []
        errors: list[ModelError] = []
        for family in families.values():
            try:
                priced += self._family(family)
            except ModelError as error:
                errors.append(error)
                refused += [RefusedChange(changes, str(error)) for _, _, changes in family]
        return priced, refused, errors

    def price_each(self, config: RunConfig, changes: Sequence[Changes]) -> tuple[list[Candidate], list[RefusedChange]]:
        """Predict a run with each of some changes, as `price` does.

        Texts of another length are not those of the data, so such a change is priced with data of its own.

        Args:
            config: the run, which the model goes with as it is.
            changes: one by one, however many.

        Returns:
            Those that are sound, that the model goes with, and that do not leave the run as it is, all traced; and
            those that are not sound or that the model does not go with, with their reasons.
        """
        same_texts = [one for one in changes if LENGTH not in one]
        by_length = [(self, same_texts)]
        for change in changes:
            if LENGTH in change:
                unseen = Sequences.unseen(changed(config, change), self.sequences.num)
                by_length.append((replace(self, sequences=unseen), [change]))
        priced: list[Candidate] = []
        refused: list[RefusedChange] = []
        for options, of_length in by_length:
            candidates, without, _ = options._price(config, of_length, len(of_length))
            priced += candidates
            refused += without
        present = self._shared(config)
        is_same = [one.changes.keys() <= {*SHARING} and self._shared(one.config) == present for one in priced]
        changing = [one for one, same in zip(priced, is_same, strict=True) if not same]
        return [self.confirm(one) if one.is_between else one for one in changing], refused

    def _shared(self, config: RunConfig) -> tuple[int, str, str]:
        """Return how a run is shared out, with every `auto` settled."""
        run = resolve(config, self.target.devices)
        return run.zero_stage, run.offload_optimizer, run.offload_parameters

    def confirm(self, candidate: Candidate) -> Candidate:
        """Return a candidate whose prediction was traced and not read off between two others."""
        return Candidate(candidate.config, self.predict(candidate.config), candidate.changes)

    def predict(self, config: RunConfig, *, exact: bool = False) -> AnyPrediction:
        """Predict a configuration; `exact` traces every layer."""
        return predict(
            config,
            self.target,
            self.architecture,
            sequences=self.sequences,
            exact=exact,
            tapes=self.tapes,
            is_cached=self.is_cached,
        )

    def _sound(
        self, config: RunConfig, options: Iterable[Changes], refused: list[RefusedChange]
    ) -> Iterator[tuple[Changes, RunConfig]]:
        """Yield the changes that work, that no rule advises against unless the user asked for that, each run once."""
        devices, seen = self.target.devices, set()
        asked = set(broken_rules(resolve(config, devices).facts, Force.UNWISE))
        for changes in options:
            try:
                new = changed(config, changes)
                run = resolve(new, devices)
            except FtkitError as error:  # the rest of the configuration does not go with it
                refused.append(RefusedChange(changes, str(error)))
                continue
            rest = {key: value for key, value in changes.items() if key not in SHARING}
            same = repr((rest, run.zero_stage, run.offload_optimizer, run.offload_parameters))
            unwise = [rule for rule in broken_rules(run.facts, Force.UNWISE) if rule not in asked]
            refused += [RefusedChange(changes, rule.sentence) for rule in unwise[:1]]
            if same not in seen and not unwise:
                seen.add(same)
                yield {key: value for key, value in changes.items() if value_of(config, key) != value}, new

    def _family(self, family: list[tuple[Shape, RunConfig, Changes]]) -> Iterator[Candidate]:
        family.sort(key=lambda member: member[0].batch)
        large_shape, large_run, _ = family[-1]
        # Many micro-batches through a layer together are dear to trace: few tell of the line that more lie on beyond.
        few = [one for one in family[:-1] if one[0].group_size <= _TOGETHER] or family
        small_shape, small_run, _ = few[0]
        small, large = self.predict(small_run), self.predict(large_run)
        ends = {small_shape.batch: small, large_shape.batch: large}
        for shape, new, changes in family:
            yield Candidate(new, ends.get(shape.batch) or between(small, large, shape), changes)
