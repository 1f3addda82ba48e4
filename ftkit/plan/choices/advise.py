"""The price of each knob from where a run is, and the wall of each axis: the largest value that still fits."""

from collections.abc import Iterator
from dataclasses import dataclass

from ftkit.config.tree import RunConfig
from ftkit.plan.choices.candidates import Candidate, RefusedChange
from ftkit.plan.choices.changes import Effect, alternatives, effect_of
from ftkit.plan.choices.search import Options
from ftkit.plan.choices.solve import Axis, Solution, positions, solve

_AXES: tuple[Axis, ...] = ("max_length", "micro_batch_size", "rank")


@dataclass(frozen=True)
class Knob:
    """One change to a run.

    Attributes:
        candidate: the run with the change, and what it needs.
        effect: on the result.
    """

    candidate: Candidate
    effect: Effect


@dataclass(frozen=True)
class Advice:
    """The needs of a run as it is, and with each change.

    Attributes:
        present: the run as it is.
        knobs: those that leave the result as it is first, then by memory, the least first.
        refused: changes that a rule refuses, or advises against at this target, and those that the model does not go
            with.
    """

    present: Candidate
    knobs: tuple[Knob, ...]
    refused: tuple[RefusedChange, ...]


def advise(config: RunConfig, options: Options) -> Advice:
    """Predict a run as it is, and with each single change that goes with it.

    Args:
        config: the run, with its cut settled.
        options: the model, the data and the target.

    Returns:
        All of them, whether or not they fit.

    Raises:
        ModelError: the model does not go with the run.
    """
    longest = positions(options.architecture)
    changes = alternatives(config, options.target, options.sequences, longest, options.num_layers)
    priced, refused = options.price_each(config, changes)
    knobs = [Knob(one, effect_of(config, one.changes)) for one in priced]
    order = list(Effect)
    knobs.sort(key=lambda knob: (order.index(knob.effect), knob.candidate.needed_bytes, knob.candidate.seconds))
    return Advice(Candidate(config, options.predict(config), {}), tuple(knobs), tuple(refused))


def walls(config: RunConfig, options: Options) -> Iterator[tuple[Axis, Solution | None]]:
    """Yield each axis that a run has, with the largest value that still fits; None where not even the smallest does.

    Args:
        config: the run.
        options: the model, the data and the target.
    """
    for axis in _AXES:
        if axis != "rank" or hasattr(config.method, "rank"):
            yield axis, solve(config, options.target, axis, options.sequences.num, options.tapes)
