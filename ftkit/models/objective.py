"""Objectives: how a model's outputs are scored, and how many targets there are to divide by.

A loss is a sum over targets, divided by the targets of the global batch. No mean of means. Where targets have weights,
it is the sum of weighted losses, divided by the sum of the weights of the global batch.

A micro-batch that a rank runs for the others' sake alone carries no loss: its class is -100, its numbers are NaN.

Dimension letters: B batch, T token, V vocabulary, C class, N sequences.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ftkit.config.tree import RunConfig
from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import IGNORED, MicroBatch
from ftkit.models.kernels.chunked_loss import Targets, is_chunked
from ftkit.models.methods.lora import unwrapped
from ftkit.models.sources.source import label_kind

Forward = Callable[..., Any]
"""Takes a micro-batch's inputs by name, returns what transformers' models return; an engine's, so that it gathers."""

Weights = tuple[float, ...] | None
"""What each class counts, C numbers above 0; None: all count the same."""
Shares = torch.Tensor | None
"""[B]: what each sequence counts of its text; None: each is a text. A sum over windows is then one over texts."""


class Objective(Protocol):
    """The way a model is scored. An engine runs it together with the model, so that no one else needs whole logits."""

    def loss_sum(self, forward: Forward, micro_batch: MicroBatch) -> torch.Tensor:
        """Run the model and return its loss summed over the targets of a micro-batch, a scalar in fp32."""

    def score(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss summed over all targets, a scalar in fp32, where whole logits are there anyway."""

    def target_weights(self, split: TokenSplit) -> NDArray[np.int64] | NDArray[np.float64]:
        """Return how much the targets of each text count, [N]: their sum is what a sum of losses is divided by."""

    def unweighted(self) -> "Objective":
        """Return the same with all classes counting the same: what an evaluation reports, whatever trained."""

    def blank_labels(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return labels for tokens [B, T] that stand for data that is not at hand."""


@dataclass(frozen=True)
class TokenCrossEntropy:
    """The next token is right, of each token that carries loss: a language model.

    Attributes:
        in_chunks: whether the model makes its loss without whole logits; see `models/kernels/chunked_loss.py`.
        compares: return [loss of whole logits, loss in chunks, distance of its gradient], [3], and not the loss alone.
    """

    in_chunks: bool = False
    compares: bool = False

    def loss_sum(self, forward: Forward, micro_batch: MicroBatch) -> torch.Tensor:
        """Run the model; where its logits are whole, its largest tensor, they die with this call."""
        places_N, inputs, labels = micro_batch.target_places, micro_batch.inputs(), micro_batch.labels
        if not self.in_chunks or places_N is None:
            return self.score(forward(**inputs).logits, labels)
        loss: torch.Tensor = forward(**inputs, targets=Targets.at(places_N, labels, compares=self.compares))
        return loss if not self.compares else torch.cat([self.score(forward(**inputs).logits, labels)[None], loss])

    def score(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy summed over all targets, in fp32.

        Args:
            logits: [B, T, V].
            labels: [B, T]; a token's label stands at the token itself, the logits that predict it one before.

        Returns:
            A scalar; zero, with a gradient of zeros, where there is no target.
        """
        # The labels are shifted, not the logits: no copy of [B, T, V].
        shifted = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), shifted.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def target_weights(self, split: TokenSplit) -> NDArray[np.int64]:
        """Return the number of targets of each sequence: each counts the same."""
        return split.num_targets

    def unweighted(self) -> Objective:
        """Return itself: tokens have no classes."""
        return self

    def blank_labels(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the tokens themselves, [B, T]."""
        return input_ids.clone()


@dataclass(frozen=True)
class ClassCrossEntropy:
    """One class of a text is right; a text counts as much as its class."""

    weights: Weights = None

    def loss_sum(self, forward: Forward, micro_batch: MicroBatch) -> torch.Tensor:
        """Run the model and score its logits."""
        return self.score(forward(**micro_batch.inputs()).logits, micro_batch.labels, micro_batch.shares)

    def score(self, logits: torch.Tensor, labels: torch.Tensor, shares: Shares = None) -> torch.Tensor:
        """Return the weighted cross-entropy of logits [B, C] to classes [B], summed, in fp32."""
        weight, wide = _tensor(self.weights, logits), logits.float()
        if shares is None:
            return functional.cross_entropy(wide, labels, weight, ignore_index=IGNORED, reduction="sum")
        return functional.cross_entropy(wide, labels, weight, ignore_index=IGNORED, reduction="none") @ shares

    def target_weights(self, split: TokenSplit) -> NDArray[np.int64] | NDArray[np.float64]:
        """Return the weight of each text's class, [N]; 1 where there are no weights."""
        return split.num_targets if self.weights is None else np.asarray(self.weights)[split.labels]

    def unweighted(self) -> Objective:
        """Return the same with all classes counting the same."""
        return replace(self, weights=None)

    def blank_labels(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the first class for each text, [B]."""
        return torch.zeros(len(input_ids), dtype=torch.int64)


@dataclass(frozen=True)
class LabelCrossEntropy:
    """Each of C labels is right or wrong for itself, a sigmoid a label; where it is right it counts as its weight.

    So a text has C targets. The weights are what torch calls `pos_weight`.
    """

    num_labels: int
    weights: Weights = None

    def loss_sum(self, forward: Forward, micro_batch: MicroBatch) -> torch.Tensor:
        """Run the model and score its logits."""
        return self.score(forward(**micro_batch.inputs()).logits, micro_batch.labels, micro_batch.shares)

    def score(self, logits: torch.Tensor, labels: torch.Tensor, shares: Shares = None) -> torch.Tensor:
        """Return the binary cross-entropy of logits [B, C] to labels [B, C] of 0 and 1, summed, in fp32."""
        weight = _tensor(self.weights, logits)
        terms = functional.binary_cross_entropy_with_logits(
            logits.float(), labels.nan_to_num(), pos_weight=weight, reduction="none"
        )
        kept = terms.where(labels == labels, 0.0)
        return kept.sum() if shares is None else kept.sum(dim=1) @ shares

    def target_weights(self, split: TokenSplit) -> NDArray[np.int64] | NDArray[np.float64]:
        """Return the weights of each text's C targets, summed, [N]."""
        if self.weights is None:
            return split.num_targets
        return np.asarray(np.where(split.labels == 1, np.asarray(self.weights), 1.0).sum(axis=1))

    def unweighted(self) -> Objective:
        """Return the same with all labels counting the same."""
        return replace(self, weights=None)

    def blank_labels(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return no label for each text, [B, C]."""
        return torch.zeros(len(input_ids), self.num_labels)


class SquaredError:
    """A number is to be predicted, and the square of what it is missed by counts."""

    def loss_sum(self, forward: Forward, micro_batch: MicroBatch) -> torch.Tensor:
        """Run the model and score its output."""
        return self.score(forward(**micro_batch.inputs()).logits, micro_batch.labels, micro_batch.shares)

    def score(self, logits: torch.Tensor, labels: torch.Tensor, shares: Shares = None) -> torch.Tensor:
        """Return the squared error of outputs [B, 1] to numbers [B], summed, in fp32."""
        missed = logits.float().squeeze(-1) - labels.nan_to_num()
        kept = missed.square().where(labels == labels, 0.0)
        return kept.sum() if shares is None else kept @ shares

    def target_weights(self, split: TokenSplit) -> NDArray[np.int64]:
        """Return 1 for each text, [N]."""
        return split.num_targets

    def unweighted(self) -> Objective:
        """Return itself: numbers have no classes."""
        return self

    def blank_labels(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return 0 for each text, [B]."""
        return torch.zeros(len(input_ids))


def objective_of(config: RunConfig, architecture: Any, model: nn.Module) -> Objective:
    """Return what a model is trained for.

    Args:
        config: its task, and the weights of its classes; those that the data has yet to settle change no shape.
        architecture: the model's configuration, which says what kind its labels are of and what they are called.
        model: what `build_model` returned; it says whether it makes its loss itself.

    Returns:
        The objective.
    """
    if config.task == "causal-lm":
        return TokenCrossEntropy(is_chunked(unwrapped(model)))
    asked, weights = config.training.class_weights, None
    if isinstance(asked, dict):
        weights = tuple(asked.get(architecture.id2label[number], 1.0) for number in range(architecture.num_labels))
    match label_kind(architecture):
        case "single":
            return ClassCrossEntropy(weights)
        case "multi":
            return LabelCrossEntropy(architecture.num_labels, weights)
        case "regression":
            return SquaredError()


def _tensor(weights: Weights, logits: torch.Tensor) -> torch.Tensor | None:
    return None if weights is None else torch.tensor(weights, dtype=torch.float32, device=logits.device)
