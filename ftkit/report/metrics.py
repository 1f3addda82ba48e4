"""The figures of an evaluation: what each is called, what it means, and whether more of it is better."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ftkit.records.scores import Scores

Best = Callable[[Iterable[float]], float]


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation.

    Attributes:
        heading: its name in tables.
        note: what it means, in a sentence.
        best: the function that picks the best of several values.
        form: how a value is written.
    """

    heading: str
    note: str
    best: Best
    form: str = ".4f"

    @property
    def sign(self) -> float:
        """What a figure is multiplied by, so that the smallest is the best."""
        return 1.0 if self.best is min else -1.0


METRICS = {
    "loss": Metric("Loss", "The mean over all targets, each of which counts the same.", min),
    "accuracy": Metric("Accuracy", "The share of texts whose class is answered.", max),
    "exact_match": Metric("Exact match", "The share of texts all of whose labels are answered, and no other.", max),
    "f1_macro": Metric("F1 macro", "The mean over classes.", max),
    "f1_micro": Metric("F1 micro", "Of the labels of all texts together.", max),
    "f1_weighted": Metric("F1 weighted", "By class size.", max),
    "pearson": Metric("Pearson", "The correlation of predicted and true numbers.", max),
    "spearman": Metric("Spearman", "The correlation of their ranks.", max),
    "mae": Metric("MAE", "The mean absolute error, in the data's units.", min, ".4g"),
    "rmse": Metric("RMSE", "The root of the mean squared error, in the data's units.", min, ".4g"),
    "perplexity": Metric("Perplexity", "exp of the mean loss.", min),
}
"""By the name of the field, in reading order."""

KINDS = {
    "single": ("loss", "accuracy", "f1_macro", "f1_weighted"),
    "multi": ("loss", "exact_match", "f1_macro", "f1_micro", "f1_weighted"),
    "regression": ("loss", "pearson", "spearman", "mae", "rmse"),
    None: ("loss", "perplexity"),
}
"""What each kind of labels is scored by; None: a language model."""


BASELINES = ("accuracy", "exact_match", "rmse")
"""The figures that `baseline` is to be compared with: what the best constant answer would get."""


def taken(scores: Scores) -> dict[str, float]:
    """Return the figures that an evaluation took, in reading order."""
    return {name: value for name in METRICS if (value := getattr(scores, name)) is not None}
