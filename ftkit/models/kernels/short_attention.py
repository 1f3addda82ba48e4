"""Attention over short texts in half precision on a CPU, whose backward is made of whole products.

torch's kernel for a CPU makes the gradients of small blocks of scores, which takes long in half precision: up to 512
tokens, products of whole matrices of scores take 0.15 to 0.7 of its time (AVX-512 and AMX, torch 2.13). The forward is
torch's, and keeps no scores; the backward makes them again, of some sequences at a time.

Dimension letters: B batch, H head, K head of the key, T token, S token of the key, W width of a head.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ftkit.models import foreign
from ftkit.models.kernels import on_cpu
from ftkit.models.kernels.kept_products import keep_whole
from ftkit.models.kernels.scores import is_causal_call, product, repeated, softmax_backward, weights_of

NAME = "sdpa_short"
"""What transformers calls it."""
_LONGEST = 512
"""Tokens of the key, up to which products of whole scores are quicker."""
_SCORES_AT_ONCE = 2**22
"""Scores that the backward makes at once, or those of one sequence: 8 MiB in half precision."""


def shorten(model: nn.Module) -> None:
    """Let a model with torch's attention use this one.

    Args:
        model: a transformers model; changed in place.
    """
    if foreign.attends_by_sdpa(model):
        foreign.attend_by(model, NAME, attend)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' `sdpa` does.

    Args:
        module: the attention of a layer.
        query: [batch, heads, tokens, width].
        key: [batch, heads of the key, tokens, width].
        value: as the key.
        attention_mask: what transformers made of the padding: bool, True where a token is seen, or added to scores;
            None: nothing is masked but later tokens.
        **settings: what else transformers says of the call.

    Returns:
        [batch, tokens, heads, width], and no weights.
    """
    if not _is_covered(query, key, attention_mask, settings):
        result: tuple[torch.Tensor, None] = foreign.sdpa(module, query, key, value, attention_mask, **settings)
        return result
    scaling = settings.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_causal = is_causal_call(module, query, attention_mask, settings)
    attended: torch.Tensor = _Attention.apply(query, key, value, attention_mask, is_causal, scaling)  # type: ignore[no-untyped-call]  # torch types `apply` for no function
    return attended.transpose(1, 2).contiguous(), None


def _is_covered(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, settings: dict[str, Any]) -> bool:
    """Return whether a call has a backward that is quicker in this form."""
    is_special = any(settings.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    return (
        on_cpu.is_on_cpu(query)
        and query.dtype.itemsize == 2
        and key.shape[2] <= _LONGEST
        and torch.is_grad_enabled()
        and query.requires_grad
        and not (settings.get("dropout") or is_special or (mask is not None and mask.requires_grad))
    )


class _Attention(torch.autograd.Function):
    """Keeps query, key and value."""

    @staticmethod
    def forward(  # noqa: PLR0913  # what autograd differentiates stands beside what it does not
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        scaling: float,
    ) -> torch.Tensor:
        # Heads stand behind tokens here: laid out once for all products of the backward, each of which would do it.
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        ctx.save_for_backward(query, key, value, mask)
        ctx.is_causal, ctx.scaling = is_causal, scaling
        groups = query.shape[1] // key.shape[1]

        def attended() -> torch.Tensor:
            repeats = groups > 1 and mask is not None  # as transformers does
            seen_key, seen_value = (repeated(one, groups) if repeats else one for one in (key, value))
            return functional.scaled_dot_product_attention(
                query,
                seen_key,
                seen_value,
                mask,
                is_causal=is_causal,
                scale=scaling,
                enable_gqa=groups > 1 and not repeats,
            )

        return keep_whole(attended, query, key, value, mask)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value, mask = ctx.saved_tensors
        batch, heads, tokens = query.shape[:3]
        if ctx.is_causal:
            mask = torch.ones(1, 1, tokens, key.shape[2], dtype=torch.bool).tril()
        size = max(1, _SCORES_AT_ONCE // (heads * tokens * key.shape[2]))
        masks = repeat(None) if mask is None else mask.expand(batch, *mask.shape[1:]).split(size)
        parts = zip(*(one.split(size) for one in (query, key, value, grads[0].contiguous())), masks, strict=False)
        made = [_gradients(tensors, mask, ctx.scaling) for *tensors, mask in parts]
        return *(one[0] if len(one) == 1 else torch.cat(one) for one in zip(*made, strict=True)), None, None, None


def _gradients(
    tensors: Sequence[torch.Tensor], mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of query, key and value, which are given with the gradient of the result."""
    query_BHTW, key_BKSW, value_BKSW, grad_BHTW = tensors
    groups = query_BHTW.shape[1] // key_BKSW.shape[1]
    key_BHSW, value_BHSW = (repeated(one, groups) if groups > 1 else one for one in (key_BKSW, value_BKSW))
    weights_BHTS = weights_of(query_BHTW, key_BHSW, mask, scaling)
    grad_value = _summed(product(weights_BHTS.mT, grad_BHTW), groups)
    grad_scores_BHTS = softmax_backward(product(grad_BHTW, value_BHSW.mT), weights_BHTS)
    del weights_BHTS
    grad_key = _summed(product(grad_scores_BHTS.mT, query_BHTW, scaling), groups)
    return product(grad_scores_BHTS, key_BHSW, scaling), grad_key, grad_value


def _summed(grad_BHSW: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the gradient of heads that were repeated."""
    return grad_BHSW.unflatten(1, (-1, groups)).sum(2) if groups > 1 else grad_BHSW
