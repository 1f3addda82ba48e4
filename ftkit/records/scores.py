"""The scores of an evaluation, as a whole and by label."""

from ftkit.records.figures import Record


class LabelScores(Record):
    """The scores of one class or label."""

    name: str
    precision: float
    """Of the texts that were given it, the share that has it; 0 where none was."""
    recall: float
    """Of the texts that have it, the share that was given it; 0 where none has."""
    f1: float
    support: int
    """Texts that have it."""
    num_predicted: int
    """Texts that were given it."""


class Scores(Record):
    """The scores of an evaluation; a figure that is not defined for this kind of labels is None."""

    loss: float
    """The mean over all targets, each of which counts the same."""
    accuracy: float | None = None
    exact_match: float | None = None
    """Of several labels: the share of texts all of whose labels are answered, and no other."""
    f1_macro: float | None = None
    f1_micro: float | None = None
    f1_weighted: float | None = None
    pearson: float | None = None
    spearman: float | None = None
    mae: float | None = None
    """In the data's units."""
    rmse: float | None = None
    """In the data's units."""
    perplexity: float | None = None
    baseline: float | None = None
    """The accuracy of the largest class, the exact match of the most frequent set of labels, the RMSE of the mean."""
    confusion: list[list[int]] | None = None
    """Row: the true label; column: the predicted one."""
    per_label: tuple[LabelScores, ...] | None = None
    num_samples: int
    seconds: float
