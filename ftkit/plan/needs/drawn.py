"""What a process on a CPU takes for the texts that a run draws, where a plan is of the longest that may come.

A tape is of micro-batches that are full of the longest texts, which decide whether a run fits. Real ones hardly come
near: a global batch of 32 reviews of 26 tokens is one micro-batch of 870, where 2,048 may be in one.
"""

from dataclasses import replace

from ftkit.observe.peaks import kinds
from ftkit.observe.tape import Birth, Role, Tape
from ftkit.plan.inputs.case import Case, Counts
from ftkit.plan.inputs.shapes import largest_drawn, row_count
from ftkit.plan.needs.memory import Memory, device_of
from ftkit.plan.seconds.size import TRACED, Size
from ftkit.plan.zero.share import RankShare
from ftkit.records.figures import Kind
from ftkit.step.observer import Phase

_GROWS = {Kind.ACTIVATION, Kind.TEMPORARY}


def with_drawn(memory: Memory, case: Case, counts: Counts, share: RankShare) -> Memory:
    """Return the memory of a run, its process being that of the largest micro-batch that is drawn from its data.

    The high end of its range stays that of the longest texts, and so does the verdict. Where nothing is kept for a
    backward, it is the process's too, since the micro-batches of an evaluation are full.

    Args:
        memory: of the longest texts.
        case: the run.
        counts: of its weights.
        share: the step of one rank.
    """
    if case.target.device_type != "cpu" or not memory.peak.breakdown.activation_bytes:
        return memory
    size = _largest(case, share.tape)
    if size == TRACED:
        return memory
    drawn = device_of(case, counts).of_step(replace(share, tape=_of_size(share.tape, size)))
    ends = drawn.process_range[0], memory.process_range[1]
    return replace(memory, process_bytes=drawn.process_bytes, process_range=ends)


def _largest(case: Case, tape: Tape) -> Size:
    """Return how large the largest micro-batch is, beside the one that was traced."""
    shape = case.shape
    places = shape.batch * shape.length
    found = largest_drawn(
        case.run.config, case.target.num_devices, case.sequences, case.num_steps, row_count(unpadded=tape.unpadded)
    )
    if found is None:
        return TRACED
    full = places, places, places * shape.length
    return Size(*(min(1.0, one / most) for one, most in zip(found, full, strict=True)))


def _of_size(tape: Tape, size: Size) -> Tape:
    """Return a tape with what grows with a micro-batch as large as it is in one of another size."""
    trained = {birth.shape for birth in tape.births if birth.role is Role.TRAINABLE}

    def resized(birth: Birth, kind: Kind) -> Birth:
        grows = kind in _GROWS and birth.op and birth.phase in (Phase.FORWARD, Phase.BACKWARD)
        if not grows or birth.shape in trained or birth.shape[::-1] in trained:  # a gradient, on its way to its sum
            return birth
        return replace(birth, size=round(birth.size * size.of(birth.op)))

    return replace(tape, births=[resized(*one) for one in zip(tape.births, kinds(tape), strict=True)])
