"""The sections that say how a run trains: its optimizer, its learning rate, and when it validates, saves and ends."""

import math
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ftkit.config import rules
from ftkit.config.section import Section

BestMetric = Literal[
    "loss", "accuracy", "exact_match", "f1_macro", "f1_micro", "f1_weighted", "pearson", "spearman", "mae", "rmse"
]

MAPPINGS = ("class_weights",)
"""Fields whose keys are a user's own names, not those of fields."""


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019) and its storage."""

    name: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """Moments in fp32 or 8 bits, on the device or paged."""
    learning_rate: float | None = Field(default=None, gt=0.0)
    """The peak of the schedule; the method's own default when not named."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the moments."""
    epsilon: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled decay of matrices; biases and norms have none."""
    max_grad_norm: float | None = Field(default=1.0, gt=0.0)
    """The global gradient norm above which gradients are scaled down; none: no clipping."""


class ScheduleConfig(Section):
    """The course of the learning rate over the steps."""

    name: Literal["linear", "cosine", "constant"] = "linear"
    """The decay after the warm-up."""
    warmup_ratio: float = Field(default=0.06, ge=0.0, le=1.0)
    """The share of all steps that warm up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """A fixed number of warm-up steps instead of the share."""

    def num_warmup_steps(self, num_steps: int) -> int:
        """Return how many of `num_steps` steps warm up."""
        return round(self.warmup_ratio * num_steps) if self.warmup_steps is None else self.warmup_steps


class TrainingConfig(Section):
    """The length of training, the intervals of its log, validations and checkpoints, and its stops."""

    epochs: float | None = Field(default=3.0, gt=0.0)
    """Passes over the training split; none: as many as `max_steps` make."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps after which training ends, before `epochs` do."""
    plan_first: bool = True
    """Predict memory before training, refuse a run that would not fit, and keep the prediction in the record."""
    seed: int = Field(default=0, ge=0)
    """Decides the order of the data, the new weights and dropout."""
    trial_step: Literal["auto", "always", "never"] = "auto"
    """Take the worst step once before the first, and undo it, so that memory runs out now and not after hours; `auto`:
    on an accelerator, and on a CPU where the plan comes near the memory that there is."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between two validations; one at the end of each epoch when not named."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints; one at the end of each epoch when not named."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints that stay, the newest ones; the best weights are kept beside them."""
    checkpoint_shards: Literal["auto", "always", "never"] = "auto"
    """ZeRO-3: each rank writes its own part of a checkpoint, a tensor at a time, so that no host holds what trains
    whole; `auto`: where gathering would take more than half of the memory that a host has free."""
    keep_best: int = Field(default=1, ge=1)
    """Validations whose weights stay, those that are best by `best_metric`; the result is the best of all."""
    best_metric: BestMetric = "loss"
    """The validation figure that decides which model is kept; which there are depends on the kind of labels."""
    score_test: bool = True
    """Score the test split when training has ended; `ftkit tune` does not, since no search may look at it."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """What each class counts in training: `balanced` by its rows, or a weight for each name (1 where none is given).
    The loss is divided by the sum of weights over the global batch; evaluations weigh nothing."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Validations without improvement after which training stops; none: never."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        rules.check(rules.Facts(has_end=self.epochs is not None or self.max_steps is not None))
        return self

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights(cls, given: Any) -> Any:
        if given in (None, "balanced"):
            return given
        if not isinstance(given, dict) or not given:
            raise ValueError(f"{given!r} is neither 'balanced' nor names with weights, such as {{spam: 5}}")
        for name, weight in given.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(f"the weight of {name!r} is {weight!r}; give a number above 0")
        return {label_text(name): weight for name, weight in given.items()}


def label_text(name: Any) -> str:
    """Return a label's name as a text: YAML reads `true` and `1` as what they are, and names are texts."""
    return str(name).lower() if isinstance(name, bool) else str(name)
