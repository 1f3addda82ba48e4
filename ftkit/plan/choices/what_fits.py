"""The longest text that fits on a device, for many models and methods: a few traces each, and lines between them.

The bytes of a step grow with the length of a text almost along a line, so two lengths tell where the device's end is,
and the length there is traced next. Lengths are tried in steps of an eighth or less, so that cards whose kernels are
the same ask about the same ones, and each is traced once.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ftkit.config.recompute import LEVELS, Level
from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import resolve
from ftkit.errors import FtkitError
from ftkit.plan.choices.candidates import Candidate
from ftkit.plan.choices.changes import LENGTH, METHOD, RECOMPUTE, SIZE, changed
from ftkit.plan.choices.kept_fits import KeptFits, question
from ftkit.plan.choices.solve import ENCODERS, LENGTH_STEP, MODEL, positions
from ftkit.plan.inputs.architectures import find_architecture
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.memory import REPLAY_NOISE
from ftkit.plan.needs.weights import least_weight_bytes, weights_reason
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.predicted import AnyPrediction, FormulaPrediction
from ftkit.records.fits import Fit
from ftkit.records.schema import Verdict

_SHORT = 1024
"""Models that read no more than this are first asked about their whole length with all kept: most have the room."""


def what_fits(
    config: RunConfig,
    targets: Sequence[Target],
    models: Sequence[str],
    methods: Sequence[str],
    kept: KeptFits | None = None,
) -> Iterator[Fit]:
    """Yield the longest text that fits, one text at a time, for each model with each method on each device.

    Args:
        config: all else of the run.
        targets: the devices; those whose kernels are the same share what is traced.
        models: names.
        methods: names.
        kept: answers that were found before are looked up here, and those that are found now put in.

    Yields:
        One for each model, method and device, models first; where it cannot be told, the reason.
    """
    for model in models:
        traced = Tapes()
        for method, target in product(methods, targets):
            try:
                new = changed(config, {MODEL: model, METHOD: method, SIZE: 1})
                found = _answer(new, target, traced, kept)
            except FtkitError as error:
                found = Fit(model=model, method=method, reason=" ".join(str(error).split()), is_told=False)
            yield found.model_copy(update={"device": target.words})


@dataclass(frozen=True)
class _Lengths:
    """The lengths of the texts of one run, each predicted once.

    Attributes:
        config: the run, one text at a time.
        target: the devices.
        architecture: of its model.
        tapes: what was traced of the model.
        known: what has been predicted.
    """

    config: RunConfig
    target: Target
    architecture: Any
    tapes: Tapes
    known: dict[tuple[int, Level], Candidate] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Tokens that the model reads at most."""
        return positions(self.architecture)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of recomputing that differ: one alone where the layers have no backward."""
        return LEVELS[:1] if self.config.method.leaves_trunk else LEVELS

    def tried(self, length: int, level: Level) -> Candidate:
        """Return the run with a length and a level, and what it needs."""
        if (length, level) not in self.known:
            changes = {LENGTH: length, RECOMPUTE: level}
            new = changed(self.config, changes)
            sequences = Sequences.unseen(new)
            prediction = predict(new, self.target, self.architecture, sequences=sequences, tapes=self.tapes)
            self.known[length, level] = Candidate(new, prediction, changes)
        return self.known[length, level]


def _answer(config: RunConfig, target: Target, traced: Tapes, kept: KeptFits | None) -> Fit:
    """Return the longest text of one run that fits, from what is kept where it was asked about before."""
    key = question(config, target) if kept else None
    found = kept.get(key) if kept and key else None
    if found is None:
        found = _fit(_Lengths(config, target, find_architecture(config), traced))
        if kept and key:
            kept.put(key, found)
    return found


def _fit(lengths: _Lengths) -> Fit:
    """Return the longest text of one run that fits."""
    config, target = lengths.config, lengths.target
    if config.task == "causal-lm" and lengths.architecture.model_type in ENCODERS:
        return _none(lengths, "reads a text whole, and does not write one", is_told=False)
    weights = least_weight_bytes(resolve(config, target.devices), lengths.architecture)
    if (reason := weights_reason(target, weights)) is not None:
        return _none(lengths, reason)
    best, reason = _longest(lengths)
    return _none(lengths, reason) if best is None else _cell(lengths, best, reason)


def _longest(lengths: _Lengths) -> tuple[Candidate | None, str | None]:
    """Return the run with the longest text that fits, and why a longer one does not."""
    levels, longest = lengths.levels, lengths.longest
    if longest <= _SHORT and _fits(one := lengths.tried(longest, levels[0])):
        return one, None
    if _fits(lengths.tried(longest, levels[-1])):
        return next(one for level in levels if _fits(one := lengths.tried(longest, level))), None
    shortest = lengths.tried(min(LENGTH_STEP, longest), levels[-1])
    if not _fits(shortest):
        return None, shortest.prediction.reason
    return _between(lambda length: lengths.tried(length, levels[-1]), _grid(longest))


def _between(tried: Callable[[int], Candidate], lengths: Sequence[int]) -> tuple[Candidate, str | None]:
    """Return the last of some lengths that fits, and why the next does not; the first is known to fit, the last not to.

    The first guess is where live bytes meet the device's end, the second where all that the allocator keeps does, which
    is less; what lies between them is halved.
    """
    low, high, num_guesses = 0, len(lengths) - 1, 0
    while high - low > 1:
        ends = tried(lengths[low]), tried(lengths[high])
        guess = (low + high) // 2
        if num_guesses < 2:
            meeting = _meeting(*ends, _live if num_guesses == 0 else _kept)
            guess = max(low + 1, min(high - 1, bisect_right(lengths, meeting) - 1))
        num_guesses += 1
        low, high = (guess, high) if _fits(tried(lengths[guess])) else (low, guess)
    return tried(lengths[low]), tried(lengths[high]).prediction.reason


def _live(prediction: AnyPrediction) -> float:
    """Return the least that a device must have for a step: the noise of the allocator and the context are added."""
    return prediction.peak_active_bytes * (1 + REPLAY_NOISE) + prediction.context_bytes


def _kept(prediction: AnyPrediction) -> float:
    return prediction.peak_process_bytes


def _meeting(low: Candidate, high: Candidate, needed: Callable[[AnyPrediction], float]) -> float:
    """Return the length at which the line through two lengths meets what a device has."""
    first, last = needed(low.prediction), needed(high.prediction)
    if last <= first:
        return _length(high)
    share = (low.prediction.budget_bytes - first) / (last - first)
    return _length(low) + share * (_length(high) - _length(low))


def _grid(longest: int) -> list[int]:
    """Return lengths up to a model's longest: steps of 64 at first, then of an eighth of the power of two below."""
    found = [min(LENGTH_STEP, longest)]
    while found[-1] < longest:
        step = max(LENGTH_STEP, 2 ** (found[-1].bit_length() - 4))
        found.append(min(longest, found[-1] + step))
    return found


def _length(candidate: Candidate) -> int:
    return candidate.prediction.sequence_length


def _fits(candidate: Candidate) -> bool:
    return candidate.prediction.verdict is Verdict.FITS


def _none(lengths: _Lengths, reason: str | None, *, is_told: bool = True) -> Fit:
    config = lengths.config
    return Fit(
        model=config.model.name, method=config.method.name, longest=lengths.longest, reason=reason, is_told=is_told
    )


def _cell(lengths: _Lengths, best: Candidate, reason: str | None) -> Fit:
    config, prediction = best.config, best.prediction
    tokens = config.batch.global_batch_size * _length(best)
    return Fit(
        model=config.model.name,
        method=config.method.name,
        longest=lengths.longest,
        length=_length(best),
        recompute=str(config.model.recompute) if len(lengths.levels) > 1 else None,
        peak_process_bytes=prediction.peak_process_bytes,
        tokens_per_second=tokens / best.seconds if best.seconds else None,
        reason=_formula(prediction) or reason,
    )


def _formula(prediction: AnyPrediction) -> str | None:
    return prediction.basis_note if isinstance(prediction, FormulaPrediction) else None
