"""The scores of an attention as whole matrices, and the parts that its forward and its backward are made of.

Dimension letters: B batch, H head, T token, S token of the key, W width of a head.
"""

from typing import Any

import torch
from torch import nn

from ftkit.models.kernels import foreign

_AT_A_TIME, _SHORT_ROW = 32, 96
"""Numbers of half precision that torch's softmax for a CPU reads at once; a row whose last ones hardly count."""


def is_causal_call(module: nn.Module, query: torch.Tensor, mask: torch.Tensor | None, settings: dict[str, Any]) -> bool:
    """Return whether later tokens are hidden without a mask, as transformers' `sdpa` decides it.

    Args:
        module: the attention of a layer.
        query: [B, H, T, W].
        mask: of the call.
        settings: what else transformers says of the call.
    """
    asked = settings.get("is_causal")
    asked = getattr(module, "is_causal", True) if asked is None else asked
    return bool(mask is None and query.shape[2] > 1 and asked)


def repeated(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """Return key or value with each head `groups` times, one beside the other: [batch, heads, tokens, width]."""
    batch, heads, tokens, width = tensor.shape
    return tensor[:, :, None].expand(batch, heads, groups, tokens, width).reshape(batch, -1, tokens, width)


def weights_of(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """Return the weights of attention before any is dropped, [B, H, T, S].

    Args:
        query: [B, H, T, W].
        key: [B, H, S, W].
        mask: bool, True where a token is seen, or added to the scores; its shape broadcasts to [B, H, T, S].
        scaling: of the scores.
    """
    scores_BHTS = product(query, key.mT, scaling)
    if mask is not None and mask.dtype == torch.bool:
        scores_BHTS.masked_fill_(~mask, torch.finfo(scores_BHTS.dtype).min)
    elif mask is not None:
        scores_BHTS += mask
    return _softmax(scores_BHTS)


def product(left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Return `scale * left @ right` for each head, scaled before it is rounded and without a pass of its own.

    Args:
        left: [B, H, ..., ...].
        right: [B, H, ..., ...].
        scale: of the product.
    """
    added = left.new_empty(1, 1, 1)  # times 0: its values do not count
    scaled = torch.baddbmm(added, left.flatten(0, 1), right.flatten(0, 1), beta=0, alpha=scale)
    return scaled.view(*left.shape[:2], *scaled.shape[1:])


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Return a softmax over the last dimension; short rows of half precision go through fp32 where that is quicker.

    torch's kernel for a CPU takes 32 numbers of half precision at a time, and what is left of a row one by one: 30 in a
    row take four times as long as in fp32, casts included, and 48 half as long again (AVX-512, torch 2.13).
    """
    width = scores.shape[-1]
    if scores.dtype.itemsize == 2 and width < _SHORT_ROW and width % _AT_A_TIME:
        return torch.softmax(scores.float(), -1).to(scores.dtype)
    return torch.softmax(scores, -1)


def softmax_backward(grad: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the scores; in half precision rows that the kernel takes one by one go through fp32.

    Args:
        grad: of the weights; both [B, H, T, S].
        weights: that the softmax returned.
    """
    if grad.dtype.itemsize == 2 and grad.shape[-1] < _AT_A_TIME:
        return foreign.softmax_backward(grad.float(), weights.float()).to(grad.dtype)
    return foreign.softmax_backward(grad, weights)
