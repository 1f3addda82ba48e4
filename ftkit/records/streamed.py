"""The figures of frozen layers that are streamed."""

from ftkit.records.figures import Record


class StreamPlan(Record):
    """The part of a plan on frozen layers that come to the device when they run."""

    place: str
    """Where they come from: `ram` or `disk`."""
    num_bytes: int
    """Of all their weights."""
    window_bytes: int
    """What they take of the device."""
    step_bytes: int
    """What comes to the device in a step."""
    step_seconds: float
    """How long that takes; it goes on while layers are computed."""
    source: str = ""
    """Where the rate is from that this rests on, in words."""
