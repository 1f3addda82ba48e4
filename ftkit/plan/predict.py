"""One configuration in, one Prediction out: trace, unroll, apply ZeRO, replay the allocator, take the time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, Unpack

from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import resolve
from ftkit.errors import ModelError
from ftkit.models.build import build_empty_model
from ftkit.observe.recorded import Given
from ftkit.observe.tape import Tape
from ftkit.plan.inputs.architectures import find_architecture
from ftkit.plan.inputs.case import Case, Counts, disk_bytes, result_bytes, source_bytes
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs import fallback as formula
from ftkit.plan.needs.drawn import with_drawn
from ftkit.plan.needs.memory import Memory, device_of
from ftkit.plan.needs.streamed import Streamed, rank_of
from ftkit.plan.needs.trunk import Pass, head_shape, trace_pass, trunk_plan, wants_pass, with_pass
from ftkit.plan.predicted import AnyPrediction, MemoryPrediction, TracedPrediction, by_formula, traced
from ftkit.plan.run_speed import speed_of
from ftkit.plan.tracing.layer_choice import ShallowModel, choose_layers
from ftkit.plan.tracing.trace import UntraceableModelError, count_weights, trace
from ftkit.plan.tracing.unroll import NotAlikeError, unroll
from ftkit.plan.zero.share import RankShare
from ftkit.records.schema import Basis, Verdict
from ftkit.records.trunk import TrunkPlan
from ftkit.step.observer import Phase


@dataclass(frozen=True)
class Tapes:
    """All that has been traced of one model, so that a search traces no step twice.

    Attributes:
        known: what decides a step, to its tape and how that was made.
        shallow: what decides the layers that are traced, to the model that has them alone.
        passes: what decides the pass that runs a frozen trunk once, to its tape; None: the model allows none.
        streams: what decides the layers that are streamed, to what they are; None: none.
        grounds: a run and all that is known of it, to its prediction; of one device, whose tape is among the known.
    """

    known: dict[tuple[Any, ...], tuple[Tape, Basis]] = field(default_factory=dict)
    shallow: dict[tuple[Any, ...], ShallowModel] = field(default_factory=dict)
    passes: dict[tuple[Any, ...], Pass | None] = field(default_factory=dict)
    streams: dict[tuple[Any, ...], Streamed | None] = field(default_factory=dict)
    grounds: "dict[tuple[Any, ...], Grounds]" = field(default_factory=dict)


@dataclass(frozen=True)
class Grounds:
    """A prediction, with what it was made of.

    Attributes:
        prediction: of the run.
        case: the run at its target.
        tape: what one rank holds in the step, or in the pass before the steps where the peak is there; None: a formula
            stood in.
        share: what one rank holds and sends of a step; None as before.
    """

    prediction: AnyPrediction
    case: Case
    tape: Tape | None
    share: RankShare | None = None


class Beforehand(TypedDict, total=False):
    """What a prediction may be told beside the run, its target and its model."""

    sequences: Sequences | None
    """The data; None: not at hand."""
    exact: bool
    """Whether to trace every layer."""
    tapes: Tapes | None
    """What was traced before and is looked up here first; the prediction's tape is put in."""
    is_cached: bool
    """Whether the cache of hidden states has all that a frozen trunk would make of the data."""
    weighs_trunk: bool
    """Whether to say from how many epochs on it pays to run a frozen trunk once, which takes a trace; usually True."""


def predict(config: RunConfig, target: Target, architecture: Any = None, **known: Unpack[Beforehand]) -> AnyPrediction:
    """Predict memory and speed of a configuration at a target.

    Args:
        config: the run.
        target: the devices.
        architecture: of the model; found by its name when None.
        known: what else is known.

    Returns:
        The prediction; by a formula, and without a time, where the model's code cannot be traced.

    Raises:
        ModelError: the model is unknown, or not for this task or method, or its step can be neither traced nor computed
            by a formula.
        ConfigError: the settings do not go together, or the batch cannot be cut.
        DeviceError: the target cannot compute in the precision asked for.
    """
    return predict_with_grounds(config, target, architecture, **known).prediction


def predict_with_grounds(
    config: RunConfig, target: Target, architecture: Any = None, **known: Unpack[Beforehand]
) -> Grounds:
    """Predict as `predict` does, and return what the prediction was made of too."""
    tapes, exact, is_cached = known.get("tapes") or Tapes(), known.get("exact", False), known.get("is_cached", False)
    sequences = known.get("sequences") or Sequences.unseen(config)
    weighs_trunk = known.get("weighs_trunk", True)
    key = config.model_dump_json(), target, sequences, exact, is_cached, weighs_trunk
    if key in tapes.grounds:
        return tapes.grounds[key]
    run = resolve(config, target.devices)
    with _quiet():
        architecture = find_architecture(run.config) if architecture is None else architecture
        case = Case.of(run, target, architecture, sequences)
        try:
            once = _known_pass(case, tapes, is_cached) if wants_pass(case) else None
            grounds = (
                _predict_whole(case, exact, tapes)
                if once is None
                else _predict_once(case, once, exact, tapes, weighs_trunk=weighs_trunk)
            )
        except UntraceableModelError as error:
            grounds = Grounds(_by_formula(case, error), case, None)
    if any(grounds.tape is tape for tape, _ in tapes.known.values()):  # one that is its own would only fill the memory
        tapes.grounds[key] = grounds
    return grounds


def _predict_whole(case: Case, exact: bool, tapes: Tapes) -> Grounds:
    """Predict a run whose model runs whole in each step."""
    share, prediction = _whole_step(case, exact, tapes)
    return Grounds(prediction, case, share.tape, share)


def _whole_step(case: Case, exact: bool, tapes: Tapes) -> tuple[RankShare, TracedPrediction]:
    tape, basis = _known_tape(case, exact, tapes)
    streamed = _known_stream(case, tapes)
    counts, share = rank_of(case, tape, streamed)
    coming = streamed.plan(case.target, case.shape) if streamed else None
    needed = with_drawn(device_of(case, counts).of_step(share), case, counts, share)
    memory = _memory_prediction(case, counts, needed, basis)
    return share, traced(memory, speed_of(case, case.shape, tape, share, coming))


def _predict_once(case: Case, once: Pass, exact: bool, tapes: Tapes, *, weighs_trunk: bool) -> Grounds:
    """Predict a run whose frozen trunk runs once, before the steps, which do without."""
    shape = head_shape(case, once)
    tape, basis = _known_tape(replace(case, shape=shape), exact, tapes, once.given)
    streamed = _known_stream(case, tapes)
    counts, share = rank_of(case, tape, streamed)
    coming = streamed.plan(case.target, shape, is_closed=True) if streamed else None
    memory = with_pass(device_of(case, counts).of_step(share), case, counts, once)
    speed = speed_of(case, shape, tape, share, coming)
    whole = None if once.is_done or not weighs_trunk else _whole_step(case, exact, tapes)[1].step_seconds
    planned = trunk_plan(case, once, share.tape.peak_bytes(), speed.step_seconds, whole, streamed)
    prediction = traced(_memory_prediction(case, counts, memory, basis, trunk=planned), speed)
    return Grounds(prediction, case, once.tape if memory.peak.phase is Phase.TRUNK else share.tape, share)


def _known_stream(case: Case, tapes: Tapes) -> Streamed | None:
    """Return what is streamed, which no cut changes."""
    key = (*_model_key(case), case.run.dtype, case.run.config.engine.stream_layers, case.run.config.engine.stream_head)
    if key not in tapes.streams:
        tapes.streams[key] = Streamed.of(case)
    return tapes.streams[key]


def _known_pass(case: Case, tapes: Tapes, is_cached: bool) -> Pass | None:
    """Trace the pass of a run that wants one; None where the model does not allow it and the run does not insist."""
    key = (*_model_key(case), case.shape.traced, _kernels(case), case.run.config.cache.dtype, is_cached)
    if key not in tapes.passes:
        try:
            tapes.passes[key] = trace_pass(case, is_done=is_cached)
        except UntraceableModelError:
            raise
        except ModelError as error:
            if case.run.config.cache.trunk == "on":
                raise ModelError(f"cache.trunk=on: {error}") from error
            tapes.passes[key] = None
    return tapes.passes[key]


def _by_formula(case: Case, error: UntraceableModelError) -> AnyPrediction:
    """Predict memory, not speed, of a model whose code cannot be traced."""
    architecture, shape, dtype = case.architecture, case.shape, case.run.dtype
    if (size := formula.missing_size(architecture)) is not None:
        raise UntraceableModelError(f"{error}; and no formula stands in: it has no {size}") from error
    streamed = Streamed.of(case)
    counts = Counts.of(count_weights(build_empty_model(case.run.config, architecture, dtype), {}), dtype)
    weights = counts.total, counts.trainable
    parts = formula.breakdown(case.run.config, architecture, shape.batch, shape.length, dtype.itemsize, weights)
    if streamed is not None:
        parts = parts.model_copy(update={"parameter_bytes": streamed.resident_bytes})
        counts = replace(counts, load_bytes=counts.load_bytes - streamed.left_bytes)
    note = f"by formula ({formula.source_of(case.run)}): {error}"
    parts, elsewhere = formula.shared_out(parts, case.run, architecture)
    if streamed is not None:
        elsewhere = streamed.on_host(elsewhere, case.target.device_type)
    memory = device_of(case, counts).of_parts(parts, elsewhere)
    return by_formula(_memory_prediction(case, counts, memory, Basis.FORMULA, note))


def _known_tape(case: Case, exact: bool, tapes: Tapes, given: Given | None = None) -> tuple[Tape, Basis]:
    """Trace, unless the same step was traced before: ZeRO and the number of ranks leave it as it is."""
    run = case.run
    key = (
        *_model_key(case),
        run.config.optimizer.name,
        case.shape.traced,
        _kernels(case),
        run.partitions_weights,
        given,
    )
    places = (key, exact), (key, exact, case.target.gpu and case.target.gpu.multiprocessors)
    found = next((tapes.known[place] for place in places if place in tapes.known), None)
    if found is None:
        found = _tape(case, exact, tapes, given)
        tapes.known[places[found[0].is_of_one_card]] = found
    return found


def _tape(case: Case, exact: bool, tapes: Tapes, given: Given | None) -> tuple[Tape, Basis]:
    def run(model: ShallowModel) -> Tape:
        return trace(
            model.config,
            model.architecture,
            case.run.dtype,
            case.shape.traced,
            case.target.gpu,
            device_type=case.target.device_type,
            levels=model.levels,
            sees_modules=case.run.partitions_weights,
            given=given,
        )

    # Few layers are left where a trunk is not run, and the place of its end is a name in the deep model.
    model = _shallow_model(case, exact or given is not None, tapes)
    try:
        tape = unroll(run(model), model.kept, model.kinds)
    except NotAlikeError:
        model = choose_layers(case.run.config, case.architecture, exact=True)
        tape = run(model)
    return tape, Basis.TRACED_WHOLE if model.is_whole else Basis.TRACED


def _shallow_model(case: Case, exact: bool, tapes: Tapes) -> ShallowModel:
    """Choose the layers of a case, unless that was done before for another cut, optimizer or engine."""
    key = (*_model_key(case), exact)
    if key not in tapes.shallow:
        tapes.shallow[key] = choose_layers(case.run.config, case.architecture, exact=exact)
    known = tapes.shallow[key]
    return replace(known, config=case.run.config.model_copy(update={"method": known.config.method}))


def _kernels(case: Case) -> tuple[str, tuple[int, int]] | None:
    """Return what decides the kernels of a step, and with the configuration its dtype; None on a CPU."""
    return None if case.target.gpu is None else case.target.gpu.kernels


def _model_key(case: Case) -> tuple[str, ...]:
    config, engine = case.run.config, case.run.config.engine
    # A step is the same wherever its layers come from.
    return config.task, str(config.model), str(config.method), f"{engine.stream_layers != 'none'} {engine.stream_head}"


def _memory_prediction(
    case: Case,
    counts: Counts,
    memory: Memory,
    basis: Basis,
    note: str | None = None,
    trunk: TrunkPlan | None = None,
) -> MemoryPrediction:
    target, shape, peak = case.target, case.shape, memory.peak
    return MemoryPrediction(
        basis=basis,
        basis_note=note,
        device=target.name,
        precision=case.run.precision,
        micro_batch_size=shape.batch,
        num_micro_batches=shape.num_micro_batches,
        sequence_length=shape.length,
        num_steps=case.num_steps,
        num_parameters=counts.total,
        num_trainable_parameters=counts.trainable,
        disk_bytes=disk_bytes(case, counts),
        result_bytes=result_bytes(case, counts),
        source_bytes=source_bytes(case, counts),
        budget_bytes=target.memory_bytes,
        context_bytes=target.context_bytes,
        peak_active_bytes=peak.active_bytes,
        peak_reserved_bytes=memory.reserved_bytes,
        returned_bytes=memory.returned_bytes or None,
        peak_process_bytes=memory.process_bytes,
        peak_breakdown=peak.breakdown,
        peak_phase=peak.phase,
        peak_module=peak.module or None,
        peak_layer=peak.layer,
        host_bytes=memory.host_bytes,
        pinned_bytes=memory.pinned_bytes,
        nvme_bytes=memory.nvme_bytes,
        fits=memory.verdict is not Verdict.DOES_NOT_FIT,
        verdict=memory.verdict,
        verdict_by=memory.verdict_by,
        process_low_bytes=memory.process_range[0],
        process_high_bytes=memory.process_range[1],
        reason=memory.reason,
        trunk=trunk,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what transformers says about saving configurations that are never saved."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
