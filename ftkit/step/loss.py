"""The loss: a sum over targets, to be divided by the targets of the global batch. No mean of means.

Dimension letters: B batch, T token, V vocabulary, C class.
"""

import torch
from torch.nn import functional

from ftkit.data.batching import IGNORED


def loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy summed over all targets, in fp32.

    Args:
        logits: [B, C] for classification, [B, T, V] for a language model.
        labels: [B] or [B, T]; a token's label stands at the token itself, the logits that predict it one place before.

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
