"""Words for frozen layers that are streamed."""

from collections.abc import Sequence

from ftkit.records.streamed import StreamPlan
from ftkit.units import format_bytes, format_seconds

PLACES = {"ram": "the host's memory", "disk": "the disk"}
"""Where streamed layers come from, in words."""


def stream_rows(streamed: StreamPlan | None) -> list[tuple[str, str]]:
    """Return where streamed layers come from and what comes in a step, as names and texts.

    Args:
        streamed: what the plan says; None: no layer is streamed.

    Returns:
        Rows of a plan.
    """
    if streamed is None:
        return []
    whole, window = format_bytes(streamed.num_bytes), format_bytes(streamed.window_bytes)
    return [
        ("streamed layers", f"{whole} from {PLACES[streamed.place]}, through a window of {window}"),
        ("  read in a step", f"{format_bytes(streamed.step_bytes)}, {_time(streamed)}"),
    ]


def stream_line(streamed: StreamPlan) -> str:
    """Return the same as one sentence."""
    size, window = format_bytes(streamed.step_bytes), format_bytes(streamed.window_bytes)
    place = PLACES[streamed.place]
    return f"streamed layers: {size} a step from {place} through a window of {window}, {_time(streamed)}"


def window_words(layers: Sequence[int]) -> str:
    """Return the layers that a window holds, in words."""
    if not layers:
        return "no layer"
    return f"layer{'' if len(layers) == 1 else 's'} {' and '.join(map(str, layers))}"


def _time(streamed: StreamPlan) -> str:
    source = f" {streamed.source}" if streamed.source else ""
    return f"in {format_seconds(streamed.step_seconds)} beside the computation, at best{source}"
