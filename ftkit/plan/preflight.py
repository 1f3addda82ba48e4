"""Before training: predict the run on this machine, settle what the planner chooses, and refuse what would not fit.

The first rank plans; the others hear what it found.
"""

import contextlib
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import resolve
from ftkit.errors import DoesNotFitError, FtkitError, PlannerError
from ftkit.machine.memory import available_bytes, resident_bytes
from ftkit.machine.process import ProcessContext, first_decides
from ftkit.plan.choices.candidates import Candidate
from ftkit.plan.choices.changes import as_flags, changed, takes_fewer_bits
from ftkit.plan.choices.cut import settle_cut
from ftkit.plan.choices.fit import fit, ways
from ftkit.plan.choices.search import Options, cures, options_at
from ftkit.plan.copied import CopyLostError, can_be_copied, in_a_copy
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import Target, find_target
from ftkit.plan.job import with_job
from ftkit.plan.looked import looked
from ftkit.plan.needs.bare import beyond_any_model
from ftkit.plan.needs.weights import least_weight_bytes, weights_reason
from ftkit.plan.predict import Tapes
from ftkit.plan.predicted import AnyPrediction, TracedPrediction
from ftkit.plan.tracing.trace import UntraceableModelError
from ftkit.report.planned.job import job_lines
from ftkit.report.planned.streamed import stream_line
from ftkit.report.planned.trunk import trunk_line
from ftkit.units import format_bytes

_LEFT_BY_PLAN, _LEFT_BY_FIT = 38 * 10**6, 92 * 10**6
"""What stays of a plan, or of a search, in a process that makes it itself (LoRA on MiniLM in fp32)."""
_WORTH_A_LOOK = 3.0
"""Seconds of steps, at best by the rates of loops, from which on a second or two are spent on timing real ones."""
FAULT = "planner_fault.txt"
"""The file in the result folder that keeps the traceback of a fault of the planner's."""


def check_weights(config: RunConfig, process: ProcessContext, architecture: Any) -> None:
    """Refuse a run whose weights alone exceed the device, before any data is read.

    Args:
        config: the run.
        process: the place of this process; every process of the job calls this.
        architecture: of the model; its labels need not be known yet.

    Raises:
        DoesNotFitError: the weights do not fit; the cheapest changes that would are named.
        PlannerError: the planner failed.
    """
    if config.training.plan_first:
        first_decides(process, lambda: _check_weights(config, _target(config, process), architecture))


def plan_first(  # noqa: PLR0913  # a run, where it runs, and what is known of it
    config: RunConfig,
    process: ProcessContext,
    architecture: Any,
    sequences: Sequences,
    note: Callable[[str], None],
    *,
    is_cached: bool = False,
    is_cut_named: bool = True,
    started: float | None = None,
) -> tuple[RunConfig, AnyPrediction | None]:
    """Predict a run on the machine that it is about to run on.

    Args:
        config: the run.
        process: the place of this process; every process of the job calls this.
        architecture: of the model, with its labels.
        sequences: the data.
        note: told what was found, in a line or two.
        is_cached: whether the cache has all that a frozen trunk would make of the data.
        is_cut_named: whether the cut is the user's; a default that does not fit becomes smaller.
        started: when the run began, by `time.perf_counter`; None: not known.

    Returns:
        The run with what the planner has chosen: a number for `micro_batch_tokens: auto`, and all that `engine.fit`
        leaves to it; and the prediction, None where planning is off or the model's code cannot be followed.

    Raises:
        DoesNotFitError: the run is predicted not to fit; the cheapest changes that would are named.
        PlannerError: the planner failed; a run that it should have protected does not begin unprotected.
    """
    if not config.training.plan_first and config.batch.micro_batch_tokens != "auto":
        return config, None

    def plan() -> tuple[RunConfig, AnyPrediction | None]:
        target = _target(config, process)
        work = partial(_plan, config, target, architecture, sequences, is_cached, is_cut_named, started)
        if not can_be_copied(process):
            return work(note)
        try:
            return in_a_copy(work, note)
        except CopyLostError as error:
            raise PlannerError(f"the planner failed ({error}). To train without a plan: --no-plan") from error

    return first_decides(process, plan)


def _plan(  # noqa: PLR0913  # as above
    config: RunConfig,
    target: Target,
    architecture: Any,
    sequences: Sequences,
    is_cached: bool,
    is_cut_named: bool,
    started: float | None,
    note: Callable[[str], None],
) -> tuple[RunConfig, AnyPrediction | None]:
    with _faults_kept(config, target):
        options = options_at(config, target, architecture, sequences, Tapes(), is_cached=is_cached)
        try:
            if config.engine.fit:
                planned = _fitted(config, _looked(config, options), note)
            else:
                planned = _settled(config, options, is_cut_named)
                if isinstance(planned[1], TracedPrediction) and (planned[1].total_seconds or 0.0) > _WORTH_A_LOOK:
                    planned = _settled(config, _looked(config, options), is_cut_named)
        except UntraceableModelError as error:
            note(f"warning: no plan for this run, since {error}")
            return _with_number(config, target), None
    config, prediction, lines = planned
    so_far = None if started is None else time.perf_counter() - started
    prediction = with_job(prediction, config, target, sequences, so_far)
    for line in (*lines, *job_lines(prediction.job)):
        note(line)
    if prediction.trunk is not None:
        note(trunk_line(prediction.trunk))
    if prediction.streamed is not None:
        note(stream_line(prediction.streamed))
    return config, prediction


def _looked(config: RunConfig, options: Options) -> Options:
    """Return options whose speed was seen in a few steps."""
    return replace(options, target=looked(options.target, resolve(config, options.target.devices)))


_Planned = tuple[RunConfig, AnyPrediction, tuple[str, ...]]
"""A run with what was chosen, its prediction, and what is said of it."""


def _fitted(config: RunConfig, options: Options, note: Callable[[str], None]) -> _Planned:
    note(f"planning: the fastest that fits in {format_bytes(options.target.memory_bytes)} ...")
    fitted = fit(config, options)
    return fitted.run.config, fitted.prediction, fitted.lines


def _settled(config: RunConfig, options: Options, is_cut_named: bool) -> _Planned:
    config, prediction, lines = settle_cut(config, options, is_named=is_cut_named)
    # A formula's word is not enough to refuse a run.
    if config.training.plan_first and not prediction.fits and isinstance(prediction, TracedPrediction):
        found = cures(config, options)
        raise _refusal(f"this run {prediction.reason}", found, options.target)
    return config, prediction, (*lines, _line(prediction))


@contextlib.contextmanager
def _faults_kept(config: RunConfig, target: Target) -> Iterator[None]:
    """Turn a fault of the planner's into a sentence that says the way round it; its traceback goes into a file."""
    try:
        yield
    except FtkitError:
        raise
    except Exception as error:
        file = _fault_file(config)
        file.write_text(traceback.format_exc(), encoding="utf-8")
        number = config.default_cut(target.devices.device_type)
        cut = f" --set batch.micro_batch_tokens={number}" if config.batch.micro_batch_tokens == "auto" else ""
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise PlannerError(
            f"the planner failed ({cause}); this is a mistake of ftkit's, and {file} has the traceback. To train "
            f"without a plan: --no-plan{cut}"
        ) from error


def _fault_file(config: RunConfig) -> Path:
    """Return where a traceback goes: into the result folder if it is there already, else among temporary files."""
    folder = Path(config.output.folder or "")
    if config.output.folder and folder.is_dir():
        return folder / FAULT
    return Path(tempfile.mkdtemp(prefix="ftkit-")) / FAULT


def _target(config: RunConfig, process: ProcessContext) -> Target:
    """Return this machine as the job uses it; the host memory of several machines is not known here.

    Where no budget is named, it has what is free now beside other programs, the first rank's own part with it; the
    ranks of a CPU share that.
    """
    target = find_target(num_devices=process.world_size, launcher=process.launcher)
    left = 0 if can_be_copied(process) else _LEFT_BY_FIT if config.engine.fit else _LEFT_BY_PLAN
    held = resident_bytes()
    target = replace(target, held_bytes=None if held is None else held + left)
    if process.local_world_size != process.world_size:
        target = replace(target, ram_bytes=None, locked_bytes=None)
    budget = config.engine.budget_bytes
    if budget is None and (free := available_bytes(process.device)) is not None:
        budget = free // (process.local_world_size if target.device_type == "cpu" else 1)
    return target.within(budget)


def _check_weights(config: RunConfig, target: Target, architecture: Any) -> None:
    with _faults_kept(config, target):
        reason = weights_reason(target, least_weight_bytes(resolve(config, target.devices), architecture))
        if reason is not None and not (config.engine.fit and _has_way(config, target, architecture)):
            found = cures(config, options_at(config, target, architecture))
            raise _refusal(f"this run does not fit: {reason}", found, target)


def _has_way(config: RunConfig, target: Target, architecture: Any) -> bool:
    """Return whether the weights fit in one of the ways that `engine.fit` may choose."""
    for changes in ways(config, target):
        try:
            run = resolve(changed(config, changes), target.devices)
            if weights_reason(target, least_weight_bytes(run, architecture)) is None:
                return True
        except FtkitError:  # the run or its model does not go with this way
            continue
    return False


def _refusal(reason: str, found: Sequence[Candidate], target: Target) -> DoesNotFitError:
    """Return the error of a run that does not fit, with the changes that would make it fit."""
    ways = "; ".join(map(_way, found))
    left = beyond_any_model(target) or "take a smaller model"
    cure = f"what would fit: {ways}" if found else f"nothing that ftkit can change makes it fit: {left}"
    return DoesNotFitError(f"{reason}; {cure}. To run it all the same: --no-plan")


def _way(one: Candidate) -> str:
    rounding = ", which rounds to fewer bits" if takes_fewer_bits(one.changes) else ""
    return f"{as_flags(one.changes)} ({format_bytes(one.needed_bytes)}{rounding})"


def _line(prediction: AnyPrediction) -> str:
    verdict = prediction.verdict + (f": it {prediction.reason}" if prediction.reason else "")
    peak, budget = format_bytes(prediction.peak_process_bytes), format_bytes(prediction.budget_bytes)
    how = "" if isinstance(prediction, TracedPrediction) else f", {prediction.found}"
    cut = f"micro-batches of {prediction.micro_batch_size}"
    full = "; the allocator gives back cached blocks to stay within it" if prediction.returned_bytes else ""
    return f"plan: {verdict}; {peak} of the {budget} that it can have now, in {cut}{how}{full}"


def _with_number(config: RunConfig, target: Target) -> RunConfig:
    """Return the default cut where no plan could choose one, and nothing left to choose."""
    batch, engine = config.batch, config.engine.model_copy(update={"fit": False})
    if batch.micro_batch_tokens == "auto":
        batch = batch.model_copy(update={"micro_batch_tokens": config.default_cut(target.devices.device_type)})
    return config.model_copy(update={"batch": batch, "engine": engine})
