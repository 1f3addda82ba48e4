"""What compiling takes: on a CPU, a kernel for each product in half precision and each new shape of a micro-batch.

oneDNN keeps 1,024 of them; those that were used last stay.
"""

from collections.abc import Set

from ftkit.observe.tape import OpKey, Tape
from ftkit.plan.inputs.case import Case
from ftkit.plan.inputs.shapes import fresh_shapes, fresh_share, row_count
from ftkit.plan.needs.memory import MOST_COMPILED
from ftkit.plan.seconds.speed import Device
from ftkit.step.observer import Phase

_FORWARDS = frozenset({Phase.FORWARD, Phase.TRUNK})


def in_a_step(case: Case, tape: Tape, device: Device) -> float:
    """Return the seconds of a step, on average of the run.

    Args:
        case: the run.
        tape: of a step.
        device: where it computes.
    """
    # The two steps of a tape are alike; each size is one that a layer or more has in each micro-batch.
    products = _products(tape, frozenset(Phase))
    if not device.compile_seconds or not case.num_steps or not products:
        return 0.0
    num_kept = max(1, MOST_COMPILED // len(products))
    rows = row_count(unpadded=tape.unpadded)
    fresh = fresh_shapes(case.run.config, case.target.num_devices, case.sequences, case.num_steps, num_kept, rows)
    return len(products) * fresh * device.compile_seconds / case.num_steps


def in_a_forward(case: Case, tape: Tape, device: Device) -> float:
    """Return the seconds of a micro-batch that runs forward alone, on average of an evaluation or of a trunk's pass.

    Args:
        case: the run.
        tape: of a step, or of the pass.
        device: where it computes.
    """
    if not device.compile_seconds:
        return 0.0
    rows = row_count(unpadded=tape.unpadded)
    share = fresh_share(case.run.config, case.target.num_devices, case.sequences, rows)
    return len(_products(tape, _FORWARDS)) * share * device.compile_seconds


def _products(tape: Tape, phases: Set[Phase]) -> set[OpKey]:
    """Return the products in half precision of some phases, one of each size."""
    return {
        key
        for (phase, *_), costs in tape.costs.items()
        for key in costs
        if phase in phases and key[1] and key[3] in ("bfloat16", "float16")
    }
