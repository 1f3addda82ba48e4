"""The fastest exact configuration that fits, chosen before a training: what `engine.fit` asks for.

Levels of recomputing are tried from the quickest on, each without and then with activations that wait on the host of a
GPU, and no further than to the first with which a step that fits is as fast as any: a step that recomputes more is
never quicker. Where no level leads there, frozen layers may be streamed: each of them recomputes at least what is
cheap, and the step waits for what comes, less often where several micro-batches go through a layer together. That is
chosen where nothing else fits, or nothing else is as quick. What would change the mathematics is named, not chosen;
that dropout draws in another order where micro-batches go together is said.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ftkit.config.methods import methods
from ftkit.config.recompute import LEVELS, Level, Recompute
from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import EngineKind, ResolvedRun, resolve
from ftkit.errors import DoesNotFitError, ModelError
from ftkit.machine.doctor.tools import missing_compilers
from ftkit.models.methods import method_of
from ftkit.plan.choices.candidates import ALIKE, Candidate, ranked
from ftkit.plan.choices.changes import (
    OFFLOAD,
    RECOMPUTE,
    RECOMPUTING,
    STREAM,
    TOKENS,
    Changes,
    as_flags,
    group_choices,
    halves,
    most_sequences,
    stream_choices,
    value_of,
    zero_choices,
)
from ftkit.plan.choices.search import Options, confirmed
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.bare import beyond_any_model
from ftkit.plan.predicted import AnyPrediction
from ftkit.report.planned.streamed import PLACES
from ftkit.report.words import sharing
from ftkit.units import counted, format_bytes

_LIMIT = 64
"""Configurations of one level that are predicted at most; the two ends of each family are traced."""
_NAMED = 2
"""Changes of the mathematics that are named at most."""
_LEVEL_WORDS: dict[Level, str] = {"cheap": "recompute what is cheap", "layer": "recompute everything"}


@dataclass(frozen=True)
class Fitted:
    """The settings that were chosen for a run to fit.

    Attributes:
        run: the run with it, resolved; a second start would not choose again.
        prediction: of it, with every layer traced.
        times_fastest: how many times as long a step takes as that of the fastest without a budget; None: not known.
        num_layers: of the model.
    """

    run: ResolvedRun
    prediction: AnyPrediction
    times_fastest: float | None
    num_layers: int

    @property
    def lines(self) -> tuple[str, str]:
        """The settings that were chosen, and the price of them, in words."""
        config, run = self.run.config, self.run
        levels = Counter(config.model.recompute.levels(self.num_layers))
        recomputing = [
            f"{self._layers(levels[level])} {words}" for level, words in _LEVEL_WORDS.items() if levels[level]
        ]
        shared = sharing(
            run.engine, run.devices.world_size, run.zero_stage, run.offload_optimizer, run.offload_parameters
        )
        chosen = [_cut_words(config), *(recomputing or ["no layer recomputes"]), *_stream_words(config)]
        if config.model.offload_activations:
            chosen.append("activations wait on the host")
        if run.devices.world_size > 1 or run.engine is EngineKind.DEEPSPEED:
            chosen.append(shared)
        return f"fits: {', '.join(chosen)}", f"{self._bytes_words()} planned; {self._time_words()}"

    def _layers(self, number: int) -> str:
        return f"all {number} layers" if number == self.num_layers else f"{number} of {self.num_layers} layers"

    def _bytes_words(self) -> str:
        have = format_bytes(self.prediction.budget_bytes)
        return f"{format_bytes(self.prediction.peak_process_bytes)} of {have}"

    def _time_words(self) -> str:
        if self.times_fastest is None:
            return f"{self.prediction.found}, which knows no time"
        if self.times_fastest < ALIKE:
            return "as fast as any without a budget"
        return f"a step takes {self.times_fastest:.2f} times as long as the fastest without a budget"


def fit(config: RunConfig, options: Options) -> Fitted:
    """Choose micro-batch, recomputing, what is streamed or waits on the host; under DeepSpeed ZeRO stage and offload.

    Args:
        config: the run; what it names of them stays.
        options: the model, the data and the target with its budget.

    Returns:
        The fastest that fits, with room to spare if there is such; among those that are hardly slower the simplest.

    Raises:
        DoesNotFitError: nothing does that leaves the mathematics as it is; what would otherwise is named.
        ModelError: the model does not go with the run.
        ConfigError: the settings do not go together.
    """
    priced = _priced(config, options)
    found, fastest = _fitting(priced, options), min(one.seconds for one in priced)
    if not found or found[0].seconds > ALIKE * fastest:
        streamed = _streamed(config, options)
        priced += streamed
        found = ranked([*found, *_fitting(streamed, options)])
    kept, checked = confirmed(found, options)
    if checked is None:
        raise DoesNotFitError(_nothing_fits(config, options, min(priced, key=lambda one: one.needed_bytes)))
    chosen = kept[0]
    engine = chosen.config.engine.model_copy(update={"fit": False})
    run = resolve(chosen.config.model_copy(update={"engine": engine}), options.target.devices)
    return Fitted(run, checked, chosen.seconds / fastest if fastest else None, options.num_layers)


def ways(config: RunConfig, target: Target) -> list[Changes]:
    """Return the ways to keep less of the weights on a device that `fit` may choose: partitioned, offloaded, streamed.

    Args:
        config: the run; what it names of them stays.
        target: the devices.
    """
    return [*_engines(config, target), *_streams(config, target)]


def _fitting(priced: Sequence[Candidate], options: Options) -> list[Candidate]:
    """Return those that have room, and where there are none those that fit at all, the best first."""
    return options.best(priced) or ranked(one for one in priced if one.fits)


def _priced(config: RunConfig, options: Options) -> list[Candidate]:
    """Predict the choices, level after level, until one that fits is as fast as any."""
    streams = config.engine.stream_layers != "none"
    levels: Sequence[Changes] = RECOMPUTING if streams else [{RECOMPUTE: level} for level in LEVELS]
    if config.model.recompute != Recompute():
        levels = [{RECOMPUTE: config.model.recompute.as_written()}]
    cuts = _grouped_cuts(config, options) if streams else _cuts(config, options)
    engines = _engines(config, options.target)
    priced: list[Candidate] = []
    for level, away in itertools.product(levels, _offloads(config, options.target)):
        choices = [level | away | engine | cut for engine, cut in itertools.product(engines, cuts)]
        try:
            priced += options.price(config, choices, _LIMIT)
        except ModelError:
            if not priced:
                raise
            break  # its layers cannot recompute
        fastest = min(one.seconds for one in priced)
        if any(one.has_room and one.seconds <= ALIKE * fastest for one in priced):
            break
    return priced


def _streamed(config: RunConfig, options: Options) -> list[Candidate]:
    """Predict the choices with frozen layers streamed; none where the run or its model does not go with that."""
    levels: Sequence[Changes] = RECOMPUTING if config.model.recompute == Recompute() else [{}]
    cuts, priced = _grouped_cuts(config, options), list[Candidate]()
    for level in levels:
        choices = [stream | level | cut for stream in _streams(config, options.target) for cut in cuts]
        try:
            priced += options.price(config, choices, _LIMIT)
        except ModelError:
            break  # the model does not go with that, or its layers cannot recompute so much
    return priced


def _streams(config: RunConfig, target: Target) -> list[Changes]:
    return [one for one in stream_choices(config, target) if _leaves_what_is_named(config, one)]


def _cuts(config: RunConfig, options: Options) -> list[Changes]:
    """Return the cuts to choose from, the largest first; that which is named alone, where one is."""
    if config.batch.micro_batch_size is not None or isinstance(config.batch.micro_batch_tokens, int):
        return [{}]
    most = most_sequences(config, options.target, options.sequences)
    return [{TOKENS: size * options.sequences.longest} for size in halves(most)]


def _grouped_cuts(config: RunConfig, options: Options) -> list[Changes]:
    """Return the cuts of a run that streams, each with how many micro-batches go through a layer together."""
    target, sequences = options.target, options.sequences
    return [cut | group for cut in _cuts(config, options) for group in group_choices(config, target, sequences, cut)]


def _offloads(config: RunConfig, target: Target) -> list[Changes]:
    """Return whether activations wait on the host, the choices of one level: on a GPU, where it is not named."""
    if config.model.offload_activations or target.device_type != "cuda":
        return [{}]
    return [{}, {OFFLOAD: True}]


def _engines(config: RunConfig, target: Target) -> list[Changes]:
    """Return the ways to share a step out to choose from: of DeepSpeed, where it runs by the templates of ftkit."""
    if resolve(config, target.devices).engine is not EngineKind.DEEPSPEED or config.engine.ds_config is not None:
        return [{}]
    choices: list[Changes] = [{}, {"engine.zero_stage": 0}, *zero_choices()]
    if missing_compilers():
        choices = [one for one in choices if not any("offload" in key for key in one)]
    return [one for one in choices if _leaves_what_is_named(config, one)]


def _leaves_what_is_named(config: RunConfig, changes: Changes) -> bool:
    return all(value_of(config, key) in (None, "none", value) for key, value in changes.items())


def _nothing_fits(config: RunConfig, options: Options, least: Candidate) -> str:
    """Return the sentence of a run of which nothing fits that leaves the mathematics as it is."""
    need, have = format_bytes(least.needed_bytes), format_bytes(options.target.memory_bytes)
    ways = [f"{as_flags(one.changes)} ({format_bytes(one.needed_bytes)})" for one in _others(config, options, least)]
    left = beyond_any_model(options.target) or "take a smaller model or a smaller --max-length"
    cure = (
        f"what would, and changes it: {' or '.join(ways)}"
        if ways
        else f"nor does anything else that ftkit can change: {left}"
    )
    place = least.config.engine.stream_layers
    keeping = f"model.recompute={least.config.model.recompute}" if place == "none" else f"{STREAM}={place}"
    return (
        f"nothing that leaves the mathematics as it is fits: with {_cut_words(least.config)} and {keeping} this run "
        f"needs {need} of the {have} that it may take; {cure}"
    )


def _others(config: RunConfig, options: Options, least: Candidate) -> Sequence[Candidate]:
    """Return what fits of moments in 8 bits, weights in 4 bits, and other methods."""
    choices: list[Changes] = [{"optimizer.name": "adamw_8bit"}] if config.optimizer.name == "adamw" else []
    choices += method_of(config).cheaper()
    choices += [{"method.name": name} for name in methods() if name != config.method.name]
    try:
        priced = options.price(least.config, choices, len(choices))
    except ModelError:  # the model goes with none of them, so there is nothing to name
        return []
    return [one for one in priced if one.has_room][:_NAMED]


def _stream_words(config: RunConfig) -> list[str]:
    """Return where frozen layers are streamed from, in words; nothing where they are not."""
    place = config.engine.stream_layers
    if place == "none":
        return []
    number = config.engine.stream_micro_batches
    together = [f"{number} micro-batches through each together, where dropout draws in another order"]
    return [f"frozen layers streamed from {PLACES[place]}", *(together if number != 1 else [])]


def _cut_words(config: RunConfig) -> str:
    if (size := config.batch.micro_batch_size) is not None:
        return f"micro-batches of {counted(size, 'sequence')}"
    return f"micro-batches of {config.batch.token_limit:,} tokens"
