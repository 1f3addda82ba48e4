"""Predictions between two that were made: the same step cut into other micro-batches.

A storage grows with the sequences of a micro-batch along a line, so a peak, which is the largest of many sums of such
lines, lies below the chord between two of its points: what is read off the chord is not too small. (A sequence alone
has no padding mask, so a chord that begins there may miss a mask's bytes.)
"""

from ftkit.data.batching import Shape
from ftkit.records.schema import MemoryBreakdown, Prediction


def between(small: Prediction, large: Prediction, shape: Shape) -> Prediction:
    """Return what lies between two predictions that differ in the size of their micro-batches alone.

    Bytes follow the sequences of a micro-batch. Seconds follow the number of micro-batches: those of the sequences are
    the same in every cut, and each forward and backward has its launches besides.

    Args:
        small: of fewer sequences.
        large: of more.
        shape: of the cut between them.

    Returns:
        A prediction that says in `basis` where it was read off.
    """
    assert small.micro_batch_size is not None
    assert large.micro_batch_size is not None
    share = (shape.batch - small.micro_batch_size) / (large.micro_batch_size - small.micro_batch_size)
    seconds = _seconds(small, large, shape)
    bytes_at = {
        name: _mix(getattr(small, name), getattr(large, name), share)
        for name in ("peak_active_bytes", "peak_reserved_bytes", "peak_process_bytes", "host_bytes")
    }
    fits = bool(small.fits) and (bytes_at["peak_process_bytes"] or 0) <= (small.budget_bytes or 0)
    return large.model_copy(
        update={
            **bytes_at,
            **_speed(small, seconds),
            "basis": f"between micro-batches of {small.micro_batch_size} and {large.micro_batch_size}",
            "micro_batch_size": shape.batch,
            "num_micro_batches": shape.num_micro_batches,
            "peak_breakdown": _parts(small.peak_breakdown, large.peak_breakdown, share),
            "fits": fits,
            "reason": None if fits else large.reason,
        }
    )


def _seconds(small: Prediction, large: Prediction, shape: Shape) -> float | None:
    many, few = small.num_micro_batches, large.num_micro_batches
    if small.step_seconds is None or large.step_seconds is None or many is None or few is None:
        return None
    share = (shape.num_micro_batches - few) / (many - few) if many != few else 0.0
    return large.step_seconds + share * (small.step_seconds - large.step_seconds)


def _speed(known: Prediction, seconds: float | None) -> dict[str, float | None]:
    """Return the figures of speed: each is known at another time of a step."""
    if seconds is None or not known.step_seconds:
        return {}
    ratio = known.step_seconds / seconds
    rates = ("samples_per_second", "tokens_per_second", "model_flops_utilization")
    total = known.total_seconds
    return {
        "step_seconds": seconds,
        "total_seconds": None if total is None else total / ratio,
        **{name: None if (value := getattr(known, name)) is None else value * ratio for name in rates},
    }


def _parts(small: MemoryBreakdown | None, large: MemoryBreakdown | None, share: float) -> MemoryBreakdown | None:
    if small is None or large is None:
        return None
    ends = large.model_dump()
    return MemoryBreakdown(
        **{name: round(low + share * (ends[name] - low)) for name, low in small.model_dump().items()}
    )


def _mix(small: int | None, large: int | None, share: float) -> int | None:
    return None if small is None or large is None else round(small + share * (large - small))
