"""The figures of a whole job, from its command to its end."""

from ftkit.records.figures import Record


class JobPlan(Record):
    """What a plan says of a whole job: its time and the bytes that it writes, each with its parts; None: not known."""

    seconds: float | None = None
    """From the command to its end, without an early stop."""
    num_bytes: int | None = None
    """The most that lies on the disk at one time."""
    start_seconds: float
    """Libraries, the plan, and the weights from the disk; the data too, where the run itself plans."""
    data_seconds: float | None = None
    """Reading and tokenizing all splits."""
    trunk_seconds: float | None = 0.0
    """The pass over frozen layers that run once."""
    steps_seconds: float | None = None
    evaluation_seconds: float | None = None
    """All validations, and the test."""
    save_seconds: float | None = None
    """Checkpoints, the result, opening it again, and the pages."""
    end_seconds: float = 0.0
    """Of these, what comes after the last step."""
    num_validations: int | None = None
    num_checkpoints: int | None = None
    """That are written; fewer are kept."""
    checkpoint_bytes: int
    """Checkpoints and best weights that are kept."""
    result_bytes: int
    """The trained model, or its adapter."""
    cache_bytes: int | None = None
    """Tokens, and what frozen layers have made of them."""
