"""The schema of a study of features: how well labels can be told, and which may be wrong."""

from ftkit.records.figures import Record


class Contestant(Record):
    """A way to answer, by cross-validation."""

    name: str
    accuracy: float
    low: float
    """The ends of a 95 % interval, from bootstrapping the texts."""
    high: float
    folds: tuple[float, ...]
    penalty: float | None = None


class CurvePoint(Record):
    """The accuracy with fewer labels."""

    num_sequences: int
    accuracy: float
    spread: float
    """The standard deviation over the folds."""


class Suspect(Record):
    """A text whose label is probably wrong."""

    where: str
    text: str
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float


class StudyRecord(Record):
    """Everything that a study has found."""

    model: str
    dataset: str
    num_sequences: int
    num_folds: int
    grouped_by: str | None = None
    """The column whose groups stay in one fold."""
    contestants: tuple[Contestant, ...]
    curve: tuple[CurvePoint, ...]
    suspects: tuple[Suspect, ...]
    """The most suspicious first."""
