"""The longest text that fits on a device, for many models and methods: a few traces each, and lines between them.

The bytes of a step grow with the length of a text almost along a line, from what a step takes whatever the length, so
one length tells where the device's end is, and the lengths there are traced next. Lengths are tried in steps of an
eighth or less, so that cards whose kernels are the same ask about the same ones, and each is traced once.
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
from ftkit.plan.needs.weights import least_weight_bytes, states_reason, weights_reason
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.predicted import AnyPrediction, FormulaPrediction
from ftkit.records.fits import Fit
from ftkit.records.schema import Verdict

_GUESSES = 4
"""By the line through two points; a text's bytes are no line where an allocator's segments are coarse."""
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
            prediction = predict(
                new, self.target, self.architecture, sequences=sequences, tapes=self.tapes, weighs_trunk=False
            )
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
    run = resolve(config, target.devices)
    weight_bytes = least_weight_bytes(run, lengths.architecture)
    reason = weights_reason(target, weight_bytes) or states_reason(target, run, weight_bytes)
    if reason is not None:
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
    return _border(lambda length: lengths.tried(length, levels[-1]), _grid(longest))


def _border(tried: Callable[[int], Candidate], lengths: Sequence[int]) -> tuple[Candidate | None, str | None]:
    """Return the last of some lengths that fits, and why the next does not; the last of all is known not to fit.

    A guess is where the line through the two nearest points meets the device's end. One that fits is mostly the border,
    so the next length is tried then. After a few guesses what is left is halved.
    """
    low, high, num_guesses = -1, len(lengths) - 1, 0
    longest = tried(lengths[high]).prediction
    points = [(0.0, _fixed(longest)), (float(lengths[high]), _needed(longest))]
    budget = longest.budget_bytes

    def fits(place: int) -> bool:
        one = tried(lengths[place])
        points.append((float(lengths[place]), _needed(one.prediction)))
        return _fits(one)

    while high - low > 1:
        points = sorted(points, key=lambda point: abs(point[1] - budget))[:2]
        meeting = _meeting(points[0], points[1], budget) if num_guesses < _GUESSES else None
        guess = (low + high) // 2 if meeting is None else bisect_right(lengths, meeting) - 1
        guess, num_guesses = max(low + 1, min(high - 1, guess)), num_guesses + 1
        if not fits(guess):
            high = guess
        elif guess + 1 == high or not fits(guess + 1):
            low, high = guess, guess + 1
        else:
            low = guess + 1
    return None if low < 0 else tried(lengths[low]), tried(lengths[high]).prediction.reason


def _needed(prediction: AnyPrediction) -> float:
    """Return what a device must have for a step to fit whatever is not known."""
    reserved = prediction.peak_process_bytes - prediction.context_bytes
    return reserved * (1 + REPLAY_NOISE) + prediction.context_bytes


def _meeting(first: tuple[float, float], second: tuple[float, float], budget: int) -> float | None:
    """Return the length at which the line through two points meets a budget; None where it does not rise.

    Args:
        first: a length, and the bytes that it needs.
        second: another one.
        budget: bytes.
    """
    (near, needed), (far, others) = first, second
    if (others - needed) * (far - near) <= 0:
        return None
    return near + (budget - needed) * (far - near) / (others - needed)


def _fixed(prediction: AnyPrediction) -> float:
    """Return what a step takes whatever the length: weights, gradients, masters and moments, and the context."""
    parts = prediction.peak_breakdown
    return parts.parameter_bytes + parts.gradient_bytes + parts.optimizer_bytes + prediction.context_bytes


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
