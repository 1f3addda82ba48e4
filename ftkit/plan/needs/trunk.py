"""A run whose frozen trunk is computed once: whether it is one, and what the pass needs.

The pass runs the whole model forward, before an engine is there, on every rank alike; the steps after it do without the
trunk. So each is traced as it runs, and the run needs what the worse of both needs.
"""

import math
from dataclasses import dataclass, replace

from ftkit.data.batching import Shape
from ftkit.models.methods import method_of
from ftkit.models.trunk.cut import Cut
from ftkit.models.trunk.rows import row_bytes
from ftkit.models.trunk.store import SHARD_BYTES
from ftkit.observe.recorded import Given
from ftkit.observe.tape import Tape
from ftkit.plan.inputs.case import Case, Counts
from ftkit.plan.inputs.shapes import Sequences, epoch_steps, num_micro_batches, rank_share
from ftkit.plan.needs.compiling import in_a_forward
from ftkit.plan.needs.memory import Memory, device_of
from ftkit.plan.needs.streamed import Streamed
from ftkit.plan.seconds.step_time import step_time
from ftkit.plan.tracing.trace import trace_trunk
from ftkit.plan.zero.share import RankShare
from ftkit.records.schema import Verdict
from ftkit.records.trunk import TrunkPlan

_WRITTEN_TWICE = 2
"""What is in host memory while a shard is written: the shard, and the bytes that safetensors makes of it."""
_BEST_FIRST = (Verdict.FITS, Verdict.MAY_NOT_FIT, Verdict.DOES_NOT_FIT)


@dataclass(frozen=True)
class Pass:
    """The pass over all sequences, traced.

    Attributes:
        tape: of one micro-batch.
        given: what the steps are given instead.
        is_done: whether the cache has all already, so that nothing runs.
    """

    tape: Tape
    given: Given
    is_done: bool

    @property
    def cut(self) -> Cut:
        """Where the trunk ends."""
        return self.given.cut


def wants_pass(case: Case) -> bool:
    """Return whether a run computes its trunk once, as `training.trunk.wants_trunk` decides it with the model at hand.

    Args:
        case: the run.
    """
    return method_of(case.run.config).leaves_trunk and case.run.may_cache(_num_passes(case))


def trace_pass(case: Case, *, is_done: bool) -> Pass:
    """Trace the pass of a run that wants one.

    Args:
        case: the run.
        is_done: whether the cache has all already.

    Raises:
        ModelError: the model's structure does not allow it, or its code cannot be traced.
    """
    run = case.run
    tape, cut = trace_trunk(
        run.config, case.architecture, run.dtype, case.shape, case.target.gpu, device_type=case.target.device_type
    )
    return Pass(tape, Given(cut, run.hidden_dtype), is_done)


def head_shape(case: Case, once: Pass) -> Shape:
    """Return the worst micro-batch of the steps: where one vector stands for a sequence, the shortest ones are most.

    Args:
        case: the run.
        once: its pass.
    """
    if not once.cut.is_pooled:
        return replace(case.shape, group_size=1)  # hidden states come with each micro-batch, which goes alone
    share = rank_share(case.run.config, case.target.num_devices, case.sequences)
    limit = case.run.config.batch.token_limit
    most = case.run.config.batch.micro_batch_size if limit is None else limit // case.sequences.shortest
    batch = min(most or 1, share)
    return Shape(batch, 1, num_micro_batches(case.run.config, case.target.num_devices, case.sequences, batch))


def with_pass(memory: Memory, case: Case, counts: Counts, once: Pass) -> Memory:
    """Return the worse of the steps and the pass before them.

    Args:
        memory: of the steps.
        case: the run.
        counts: of its weights.
        once: the pass.
    """
    if once.is_done:
        return memory
    before = device_of(case, counts).of_step(RankShare(once.tape))
    shard = _WRITTEN_TWICE * min(SHARD_BYTES, kept_bytes(case.sequences, once.given) or SHARD_BYTES)
    ranks = case.target.num_devices
    before = replace(before, host_bytes=before.host_bytes + ranks * shard)
    if case.target.device_type == "cpu":
        low, high = before.process_range
        before = replace(before, process_bytes=before.process_bytes + shard, process_range=(low + shard, high + shard))
    worse = max(memory, before, key=lambda one: (_BEST_FIRST.index(one.verdict), one.process_bytes))
    return replace(worse, host_bytes=max(memory.host_bytes, before.host_bytes))


def trunk_plan(
    case: Case,
    once: Pass,
    step_peak: int,
    step_seconds: float,
    whole_seconds: float | None,
    streamed: Streamed | None = None,
) -> TrunkPlan:
    """Return what a plan says of the pass.

    Args:
        case: the run.
        once: its pass.
        step_peak: bytes that live at the peak of a step without the trunk.
        step_seconds: of such a step.
        whole_seconds: of a step with the trunk; None: that was not traced.
        streamed: the layers that are streamed, which a pass may have to wait for; None: none.
    """
    shape, sequences = case.shape, case.sequences
    device = case.target.device(case.run)
    waits = 0.0 if streamed is None else streamed.pass_seconds(case.target)
    seconds = max(step_time(once.tape, device, 1, 1).seconds, waits) + in_a_forward(case, once.tape, device)
    per_step = seconds * shape.num_micro_batches
    per_token = seconds / (shape.batch * shape.length * case.target.num_devices)
    saved = None if whole_seconds is None else whole_seconds - step_seconds
    return TrunkPlan(
        num_bytes=kept_bytes(sequences, once.given),
        seconds=None if sequences.all_tokens is None else per_token * sequences.all_tokens,
        seconds_per_step=per_step,
        pass_peak_bytes=once.tape.peak_bytes(),
        step_peak_bytes=step_peak,
        pays_from_epochs=None if saved is None or saved <= 0 else per_step / saved,
        is_done=once.is_done,
    )


def kept_bytes(sequences: Sequences, given: Given) -> int | None:
    """Return the bytes on the disk; None where the number of sequences is not known.

    Args:
        sequences: the data.
        given: what is kept of each.
    """
    rows = sequences.num_all if given.cut.is_pooled else sequences.all_tokens
    return None if rows is None else rows * row_bytes(given.cut.width, given.dtype)


def _num_passes(case: Case) -> float:
    """Return how often a run goes through its data; where that is not known it may be often."""
    training, num = case.run.config.training, case.sequences.num
    if num is None or case.num_steps is None:
        return math.inf if training.epochs is None else training.epochs
    return case.num_steps / epoch_steps(case.run.config, num)
