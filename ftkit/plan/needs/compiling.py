"""What compiling takes: on a CPU, a kernel for each product in half precision and each new shape of a micro-batch.

oneDNN keeps 1,024 of them; those that were used last stay. A product of a layer's tokens has a new shape where their
number is new, that of a head where the number of sequences is, and those of an attention, which go sequence by
sequence, where their number or their length is.
"""

from collections import Counter
from collections.abc import Iterator, Set

import numpy as np

from ftkit.observe.tape import Tape
from ftkit.plan.inputs.case import Case
from ftkit.plan.inputs.shapes import ShapeOf, fresh_shapes, fresh_share, padded_shape, row_count
from ftkit.plan.seconds.speed import Device
from ftkit.step.observer import Phase

MOST_COMPILED = 1024
"""Kernels that oneDNN keeps."""
KERNEL_BYTES = 641 * 1024
"""Of a kernel: 566 KiB of the heap, which its description takes, and 75 KiB of code (a Xeon with AMX and oneDNN 3.11,
between steps 25 and 250 of LoRA on the movie reviews, in which 369 were compiled)."""
FREE_AROUND = 2 * 566 * 1024
"""What lies free in the heap around a kernel of a step: most are compiled in the first one, while activations live, and
stay when these go (the same Xeon: LoRA and QLoRA on MiniLM, with and without recomputing; feature extraction)."""
_FORWARDS = frozenset({Phase.FORWARD, Phase.TRUNK})


def in_a_step(case: Case, tape: Tape, device: Device) -> float:
    """Return the seconds of a step, on average of the run.

    Args:
        case: the run.
        tape: of a step.
        device: where it computes.
    """
    if not device.compile_seconds or not case.num_steps:
        return 0.0
    return _compiled_in_steps(case, tape, case.num_steps) * device.compile_seconds / case.num_steps


def in_a_forward(case: Case, tape: Tape, device: Device) -> float:
    """Return the seconds of a micro-batch that runs forward alone, on average of an evaluation or of a trunk's pass.

    Args:
        case: the run.
        tape: of a step, or of the pass.
        device: where it computes.
    """
    if not device.compile_seconds:
        return 0.0
    config, ranks, sequences = case.run.config, case.target.num_devices, case.sequences
    kernels = sum(
        number * fresh_share(config, ranks, sequences, shape) for number, shape in _products(case, tape, _FORWARDS)
    )
    return kernels * device.compile_seconds


def kept_bytes(case: Case, tape: Tape) -> int:
    """Return what the kernels take that are kept at the end of a run, with what lies free around those of a step.

    Args:
        case: the run; where its steps are not known, all that can be kept are.
        tape: of a step.
    """
    num_steps = MOST_COMPILED if case.num_steps is None else case.num_steps
    parted = sum(number for number, _ in _products(case, tape, frozenset(Phase))) * FREE_AROUND
    return parted + round(min(MOST_COMPILED, _compiled_in_steps(case, tape, num_steps)) * KERNEL_BYTES)


def _compiled_in_steps(case: Case, tape: Tape, num_steps: int) -> float:
    """Return how often the steps of a run compile a kernel."""
    products = list(_products(case, tape, frozenset(Phase)))
    num_kept = max(1, MOST_COMPILED // max(1, sum(number for number, _ in products)))
    config, ranks, sequences = case.run.config, case.target.num_devices, case.sequences
    return sum(
        number * fresh_shapes(config, ranks, sequences, num_steps, num_kept, shape) for number, shape in products
    )


def _products(case: Case, tape: Tape, phases: Set[Phase]) -> Iterator[tuple[int, ShapeOf]]:
    """Yield the number of the products of some phases, and what tells of a micro-batch which shape they have in it."""
    shape, rows = case.shape, row_count(unpadded=tape.unpadded)
    num_rows = rows(np.array([shape.batch * shape.length - shape.is_padded]))
    kinds = Counter(
        "attention" if len(sizes) > 2 else "head" if shape.batch in sizes and num_rows not in sizes else "tokens"
        for _, sizes, *_ in set().union(*(tape.products.get(phase, ()) for phase in phases))
    )
    yield kinds["tokens"], rows
    yield kinds["head"], len
    yield kinds["attention"], padded_shape
