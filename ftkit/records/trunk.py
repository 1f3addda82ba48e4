"""The figures of frozen layers that run once."""

from ftkit.records.figures import Record


class TrunkPlan(Record):
    """What a plan says of frozen layers that run once, before the first step; the peaks are of live tensors."""

    num_bytes: int | None = None
    """What is kept on the disk of all splits; None where their size is not known."""
    seconds: float | None = None
    """The pass over all splits."""
    seconds_per_step: float
    """The pass over as many sequences as a step has."""
    pass_peak_bytes: int
    step_peak_bytes: int
    """Of the steps, which do without the frozen layers."""
    pays_from_epochs: float | None = None
    """The epochs whose saved time makes good for the pass; None where that was not asked."""
    is_done: bool = False
    """Whether the cache had all already, so that no pass runs."""
