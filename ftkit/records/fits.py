"""The longest text that fits, of one model with one method on one device."""

from ftkit.records.figures import Record


class Fit(Record):
    """One cell of a table of models and methods."""

    device: str = ""
    """What it is to fit on, such as `T4` or `2 x T4`."""
    model: str
    method: str
    longest: int | None = None
    """Tokens that the model reads at most; None where nothing is known of it."""
    length: int | None = None
    """Tokens of the longest text that surely fits, one at a time; None where none does, or where it cannot be told."""
    recompute: str | None = None
    """The level at which layers recompute there."""
    peak_process_bytes: int | None = None
    tokens_per_second: float | None = None
    """Of such texts, with what runs once shared out over the epochs; None where a formula stands in for a trace."""
    reason: str | None = None
    """Why not a longer one, or why it cannot be told."""
    is_told: bool = True
    """Whether it can be told."""
