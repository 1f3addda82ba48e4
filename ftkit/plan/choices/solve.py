"""The largest length, micro-batch, rank or model that fits, by bisection.

What a step needs grows with each of them, so between a value that fits and one that does not lies one border. Each is
tried as it would train, the usual cut made smaller where it does not fit. Lengths and models are tried with the cut
that was asked for in sequences, or one sequence at a time: a cut in tokens would hold fewer sequences of a greater
length, and could need less.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import resolve
from ftkit.errors import ConfigError, FtkitError, ModelError
from ftkit.models.sources.known import positions_read, shapes, table_names
from ftkit.plan.choices.changes import LENGTH, RANK, SIZE, Changes, changed
from ftkit.plan.choices.cut import Settled, settle_cut
from ftkit.plan.choices.search import options_at
from ftkit.plan.inputs.architectures import find_architecture
from ftkit.plan.inputs.shapes import Sequences, rank_share
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.weights import least_weight_bytes, weights_reason
from ftkit.plan.predict import Tapes
from ftkit.plan.predicted import AnyPrediction
from ftkit.records.schema import Verdict

Axis = Literal["max_length", "micro_batch_size", "rank", "model"]
MODEL = "model.name"
LENGTH_STEP = 64
"""Tokens between the lengths that are tried."""
MOST_TOKENS = 131_072
"""The longest that is tried of a model that does not say its positions."""
RANKS = tuple(2**power for power in range(11))
ENCODERS = {"bert", "roberta", "distilbert", "deberta-v2", "modernbert"}
"""Types of models that read a text whole, and so do not write one."""


@dataclass(frozen=True)
class Solution:
    """The largest value that fits.

    Attributes:
        changes: dotted keys with their values, the one that was asked for first.
        settled: the run with them, as it trains, and the prediction of it; it fits.
        next_value: the next larger value that was not taken; None: there is none.
        next_reason: why not.
    """

    changes: Changes
    settled: Settled
    next_value: Any = None
    next_reason: str | None = None

    @property
    def config(self) -> RunConfig:
        """The run with the changes."""
        return self.settled.config

    @property
    def prediction(self) -> AnyPrediction:
        """What that run needs."""
        return self.settled.prediction


def solve(
    config: RunConfig, target: Target, axis: Axis, num_samples: int | None = None, tapes: Tapes | None = None
) -> Solution | None:
    """Return the largest value of an axis with which a run surely fits.

    Args:
        config: the run; all else of it stays.
        target: the devices.
        axis: what is as large as can be.
        num_samples: training sequences; None: not known.
        tapes: what was traced of this model before.

    Returns:
        The value with its prediction; None where not even the smallest fits.

    Raises:
        ConfigError: the run has no such axis.
        ModelError: nobody knows the model.
    """
    tapes = tapes or Tapes()

    def tried(changes: Changes) -> Settled:
        new = changed(config, changes)
        options = options_at(new, target, sequences=Sequences.unseen(new, num_samples), tapes=tapes)
        return settle_cut(new, options, is_named=new.batch.is_named)

    if axis == "model":
        return _largest_model(config, target, tried)
    return _bisect(_values(config, target, axis, num_samples), tried)


def last_true(holds: Callable[[int], bool], number: int) -> int:
    """Return the last place from 0 at which something holds that holds up to a border; -1: it holds nowhere.

    Args:
        holds: asked about log2(number) places.
        number: of places.
    """
    low, high = -1, number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _bisect(values: Sequence[Changes], tried: Callable[[Changes], Settled]) -> Solution | None:
    least = tried(values[0])  # its mistakes are the user's; those of larger values are the border
    if least.prediction.verdict is not Verdict.FITS:
        return None
    known = {0: least}
    reasons: dict[int, str] = {}

    def fits(place: int) -> bool:
        if place not in known:
            try:
                known[place] = tried(values[place])
            except FtkitError as error:
                reasons[place] = str(error)
                return False
        prediction = known[place].prediction
        reasons[place] = prediction.reason or ""
        return prediction.verdict is Verdict.FITS

    last = last_true(fits, len(values))
    if last + 1 == len(values):
        return Solution(values[last], known[last])
    return Solution(values[last], known[last], next(iter(values[last + 1].values())), reasons[last + 1])


def _values(config: RunConfig, target: Target, axis: Axis, num_samples: int | None) -> list[Changes]:
    """Return the values of an axis, the smallest first."""
    match axis:
        case "max_length":
            longest = positions(find_architecture(config))
            lengths = [*range(LENGTH_STEP, longest, LENGTH_STEP), longest]
            return [{LENGTH: length} | _smallest_cut(config) for length in lengths]
        case "micro_batch_size":
            most = rank_share(config, target.num_devices, Sequences.unseen(config, num_samples))
            return [{SIZE: size} for size in range(1, most + 1)]
        case _:
            if not hasattr(config.method, "rank"):
                raise ConfigError(f"method {config.method.name} has no rank to solve for; choose lora or qlora")
            return [{RANK: rank} for rank in RANKS]


def _smallest_cut(config: RunConfig) -> Changes:
    """Return one sequence at a time, unless a number of sequences was asked for."""
    return {} if config.batch.micro_batch_size else {SIZE: 1}


def positions(architecture: Any) -> int:
    """Return the most tokens that a model reads; a stated bound where its configuration does not say it.

    Args:
        architecture: a transformers configuration.
    """
    known = getattr(architecture, "max_position_embeddings", None) or MOST_TOKENS
    return positions_read(architecture.model_type, int(known))


def _largest_model(config: RunConfig, target: Target, tried: Callable[[Changes], Settled]) -> Solution | None:
    """Try the models of the table, the largest first, but for those whose weights alone are too large."""
    larger: tuple[str, str] | None = None
    cut = _smallest_cut(config)
    for name, weight_bytes in _models(config, target):
        reason = weights_reason(target, weight_bytes)
        if reason is None:
            try:
                settled = tried({MODEL: name} | cut)
            except FtkitError as error:
                larger = name, str(error)
                continue
            if settled.prediction.verdict is Verdict.FITS:
                return Solution({MODEL: name} | cut, settled, *(larger or (None, None)))
            reason = settled.prediction.reason or ""
        larger = name, reason
    return None


def _models(config: RunConfig, target: Target) -> list[tuple[str, int]]:
    """Return the models of the table that do the run's task, with what their weights take, the largest first."""
    sizes: dict[str, int] = {}
    for name in table_names():
        if config.task == "causal-lm" and shapes(name)["model_type"] in ENCODERS:
            continue
        new = changed(config, {MODEL: name})
        try:
            sizes[name] = least_weight_bytes(resolve(new, target.devices), find_architecture(new))
        except ModelError:
            continue  # a method whose targets the model does not have
    return sorted(sizes.items(), key=lambda one: -one[1])
