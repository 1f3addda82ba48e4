"""What a model is trained for: how its outputs are scored, and how many targets there are to divide by.

A loss is a sum over targets, divided by the targets of the global batch. No mean of means.
Dimension letters: B batch, T token, V vocabulary, C class, N sequences.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ftkit.config.tree import RunConfig
from ftkit.data.arrays import TokenSplit
from ftkit.data.batching import IGNORED, MicroBatch

Forward = Callable[..., Any]
"""Takes a micro-batch's inputs by name, returns what transformers' models return; an engine's, so that it gathers."""


class Objective(Protocol):
    """How a model is scored. An engine runs it together with the model, so that no one else needs whole logits."""

    def loss_sum(self, forward: Forward, micro_batch: MicroBatch) -> torch.Tensor:
        """Run the model and return its loss summed over the targets of a micro-batch, a scalar in fp32."""

    def score(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss summed over all targets, a scalar in fp32, where whole logits are there anyway."""

    def target_weights(self, split: TokenSplit) -> NDArray[np.int64] | NDArray[np.float64]:
        """Return how much the targets of each sequence count, [N]: their sum is what a sum of losses is divided by."""


class CrossEntropy:
    """One class is right: of a sequence, or of each token that carries loss."""

    def loss_sum(self, forward: Forward, micro_batch: MicroBatch) -> torch.Tensor:
        """Run the model; its logits, the largest tensor of a language model's step, die with this call."""
        return self.score(forward(**micro_batch.inputs()).logits, micro_batch.labels)

    def score(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy summed over all targets, in fp32.

        Args:
            logits: [B, C] for classification, [B, T, V] for a language model.
            labels: [B] or [B, T]; a token's label stands at the token itself, the logits that predict it one before.

        Returns:
            A scalar; zero, with a gradient of zeros, where there is no target.
        """
        if labels.dim() == 1:
            return functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
        # The labels are shifted, not the logits: no copy of [B, T, V].
        shifted = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), shifted.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def target_weights(self, split: TokenSplit) -> NDArray[np.int64]:
        """Return the number of targets of each sequence: each counts the same."""
        return split.num_targets


def objective_of(config: RunConfig) -> Objective:  # noqa: ARG001  # the one place to ask, whatever decides it
    """Return the objective of a run's task."""
    return CrossEntropy()
