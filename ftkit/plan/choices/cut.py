"""The cut of a global batch where the user names no number: the planner's choice, or the usual cut made smaller."""

from typing import NamedTuple

from ftkit.config.tree import RunConfig
from ftkit.plan.choices.candidates import NOTABLY, TIGHT, Candidate
from ftkit.plan.choices.changes import TOKENS, changed, halves, most_sequences
from ftkit.plan.choices.search import Options
from ftkit.plan.predicted import AnyPrediction, TracedPrediction


class Settled(NamedTuple):
    """A run whose cut is settled.

    Attributes:
        config: the run.
        prediction: of it.
        lines: what there is to say of the cut: that it is smaller than the usual one.
    """

    config: RunConfig
    prediction: AnyPrediction
    lines: tuple[str, ...] = ()


def settle_cut(config: RunConfig, options: Options, *, is_named: bool) -> Settled:
    """Settle the cut of a run: `auto` becomes a number, and a usual cut that does not fit the largest that does.

    The usual cut stays where nothing smaller fits either, where the run is not planned, and where only a formula says
    that it does not fit.

    Args:
        config: the run.
        options: the model, the data and the target.
        is_named: whether the cut is the user's, if only as `auto`.

    Returns:
        The run as it trains.
    """
    config = _chosen(config, options)
    prediction = options.predict(config)
    is_refused = config.training.plan_first and isinstance(prediction, TracedPrediction) and not prediction.fits
    if is_named or not is_refused:
        return Settled(config, prediction)
    smaller = _chosen(changed(config, {TOKENS: "auto"}), options)
    fitting = options.predict(smaller)
    if not fitting.fits:
        return Settled(config, prediction)
    usual = config.default_cut(options.target.device_type)
    line = f"micro-batches of {smaller.batch.token_limit:,} tokens, since the usual {usual:,} do not fit"
    return Settled(smaller, fitting, (line,))


def _chosen(config: RunConfig, options: Options) -> RunConfig:
    """Return a run with a number for `auto`: the smallest micro-batch among the fastest that fit.

    Bytes grow with the micro-batch almost along a line, so two small ones tell how large one may be. Where nothing
    fits, a micro-batch is one sequence.
    """
    if config.batch.micro_batch_tokens != "auto":
        return config
    target, sequences = options.target, options.sequences
    most = most_sequences(config, target, sequences)

    def tried(size: int) -> Candidate:
        changes = {TOKENS: size * sequences.longest}
        new = changed(config, changes)
        return Candidate(new, options.predict(new), changes)

    best = tried(1)
    if most == 1 or not best.has_room:
        return best.config
    slope = max(1, tried(2).needed_bytes - best.needed_bytes)
    largest = min(most, 1 + (int(TIGHT * target.memory_bytes) - best.needed_bytes) // slope)
    fitting = (one for one in map(tried, halves(largest)) if one.has_room)
    fastest: float | None = None
    for one in fitting:
        fastest = one.seconds if fastest is None else fastest
        if one.seconds > NOTABLY * fastest:
            break
        best = one
    return best.config
