"""Predictions between two that were made: the same step cut into other micro-batches, or recomputing more layers.

A storage grows with the sequences of a micro-batch along a line, so a peak, which is the largest of many sums of such
lines, lies below the chord between two of its points, so interpolation never underestimates. (A sequence alone has no
padding mask, so a chord that begins there may miss a mask's bytes.)
"""

from typing import Any

from ftkit.data.batching import Shape
from ftkit.plan.predicted import AnyPrediction, MemoryPrediction, TracedPrediction
from ftkit.records.figures import MemoryBreakdown
from ftkit.records.schema import Basis, Verdict


def between(small: AnyPrediction, large: AnyPrediction, shape: Shape) -> AnyPrediction:
    """Return what lies between two predictions that differ in the size of their micro-batches alone.

    Bytes follow the sequences of a micro-batch. Seconds follow the number of micro-batches: those of the sequences are
    the same in every cut, and each forward and backward has its launches besides.

    Args:
        small: of fewer sequences.
        large: of more.
        shape: of the cut between them.

    Returns:
        A prediction that says that it was interpolated; with a time where both have one.
    """
    share = (shape.batch - small.micro_batch_size) / (large.micro_batch_size - small.micro_batch_size)
    figures = _figures(small, large, share) | {
        "basis_note": f"between micro-batches of {small.micro_batch_size} and {large.micro_batch_size}",
        "micro_batch_size": shape.batch,
        "num_micro_batches": shape.num_micro_batches,
    }
    if isinstance(small, TracedPrediction) and isinstance(large, TracedPrediction):
        figures |= _speed(small, _seconds(small, large, shape))
    return large.model_copy(update=figures)


def recomputing(less: TracedPrediction, more: TracedPrediction, number: int, num_layers: int) -> TracedPrediction:
    """Return what lies between two predictions of which one recomputes in no layer what the other does in all.

    Seconds follow the number of layers. So do bytes, but for the first layer: while it recomputes, it holds for the
    moment all that it had kept otherwise, and nothing is saved yet.

    Args:
        less: all layers recompute less.
        more: all of them recompute more.
        number: of layers that recompute more, from 1.
        num_layers: of the model, at least 2.

    Returns:
        A prediction that says that it was interpolated.
    """
    seconds = less.step_seconds + (more.step_seconds - less.step_seconds) * number / num_layers
    figures = _figures(more, less, (num_layers - number) / (num_layers - 1))
    note = f"{number} of {num_layers} layers recompute more"
    return more.model_copy(update=figures | {"basis_note": note} | _speed(less, seconds))


def _figures(small: AnyPrediction, large: AnyPrediction, share: float) -> dict[str, Any]:
    """Return the bytes between two predictions, at a share of the way from the one that needs less."""
    low = _mix(small.process_low_bytes, large.process_low_bytes, share)
    high = _mix(small.process_high_bytes, large.process_high_bytes, share)
    verdict = _verdict(small, low, high)
    return {
        "basis": Basis.INTERPOLATED,
        "peak_active_bytes": _mix(small.peak_active_bytes, large.peak_active_bytes, share),
        "peak_reserved_bytes": _reserved(small, large, share),
        "returned_bytes": _mix(small.returned_bytes or 0, large.returned_bytes or 0, share) or None,
        "peak_process_bytes": _mix(small.peak_process_bytes, large.peak_process_bytes, share),
        "peak_breakdown": _parts(small.peak_breakdown, large.peak_breakdown, share),
        "host_bytes": _mix(small.host_bytes, large.host_bytes, share),
        "process_low_bytes": low,
        "process_high_bytes": high,
        "fits": verdict is not Verdict.DOES_NOT_FIT,
        "verdict": verdict,
        "reason": None if verdict is Verdict.FITS else large.reason or small.reason,
    }


def _verdict(small: MemoryPrediction, low: int, high: int) -> Verdict:
    if small.verdict is Verdict.FITS and high <= small.budget_bytes:
        return Verdict.FITS
    return Verdict.MAY_NOT_FIT if small.fits and low <= small.budget_bytes else Verdict.DOES_NOT_FIT


def _seconds(small: TracedPrediction, large: TracedPrediction, shape: Shape) -> float:
    many, few = small.num_micro_batches, large.num_micro_batches
    share = (shape.num_micro_batches - few) / (many - few) if many != few else 0.0
    return large.step_seconds + share * (small.step_seconds - large.step_seconds)


def _speed(known: TracedPrediction, seconds: float) -> dict[str, float | None]:
    """Return the figures of speed: each is known at another time of a step."""
    ratio = known.step_seconds / seconds
    return {
        "step_seconds": seconds,
        "total_seconds": None if known.total_seconds is None else known.total_seconds / ratio,
        "samples_per_second": known.samples_per_second * ratio,
        "tokens_per_second": known.tokens_per_second * ratio,
        "model_flops_utilization": known.model_flops_utilization * ratio,
    }


def _reserved(small: MemoryPrediction, large: MemoryPrediction, share: float) -> int | None:
    if small.peak_reserved_bytes is None or large.peak_reserved_bytes is None:  # on a CPU
        return None
    return _mix(small.peak_reserved_bytes, large.peak_reserved_bytes, share)


def _parts(small: MemoryBreakdown, large: MemoryBreakdown, share: float) -> MemoryBreakdown:
    ends = large.model_dump()
    return MemoryBreakdown(**{name: _mix(low, ends[name], share) for name, low in small.model_dump().items()})


def _mix(small: int, large: int, share: float) -> int:
    return round(small + share * (large - small))
