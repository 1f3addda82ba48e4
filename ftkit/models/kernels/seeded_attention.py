"""Attention with dropout on a CPU that keeps a seed, and neither scores nor masks.

torch's kernel for a CPU that keeps no scores knows no dropout. With dropout it takes plain math, which draws a number
for each score and keeps two matrices of [batch, heads, tokens, tokens] for the backward. Here query, key and value are
kept; the backward makes the scores and the mask again, which costs one matrix product of the five that it takes anyway.

Dimension letters: B batch, H head, T token, S token of the key, W width of a head.
"""

from typing import Any, cast

import torch
from torch import nn

from ftkit.models import foreign
from ftkit.models.kernels import dropout as seeded
from ftkit.models.kernels import foreign as foreign_torch
from ftkit.models.kernels import unpadded
from ftkit.models.kernels.kept_products import keep_whole

NAME = "sdpa_seeded"
"""What transformers calls it."""
_AT_A_TIME, _SHORT_ROW = 32, 96
"""Numbers of half precision that torch's softmax for a CPU reads at once; a row whose last ones hardly count."""


def seed_attention(model: nn.Module) -> None:
    """Let the attention of a model that drops weights keep seeds where it runs on a CPU.

    A model with an attention of its own, or for which something else than torch's was asked for, keeps what it has.

    Args:
        model: a transformers model; changed in place.
    """
    settings = vars(cast(Any, model).config.get_text_config()).items()
    drops = any("att" in name and "drop" in name and isinstance(value, float) and value > 0 for name, value in settings)
    if drops and foreign.attends_by_sdpa(model):
        foreign.attend_by(model, NAME, attend)


def keep_scores(model: nn.Module) -> None:
    """Give a model's attention back to torch, as on an accelerator.

    Args:
        model: a transformers model; changed in place.
    """
    if cast(Any, model).config._attn_implementation == NAME:
        cast(Any, model).set_attn_implementation("sdpa")


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' `sdpa` does, by seed on a CPU where weights are dropped.

    Args:
        module: the attention of a layer.
        query: [batch, heads, tokens, width].
        key: as the query, but perhaps of fewer heads or other tokens.
        value: as the key.
        attention_mask: what transformers made of the padding: bool, True where a token is seen, or added to scores.
        **settings: what else transformers says of the call, and `Rows` where query, key and value have no padding:
            they are [1, heads, rows, width] then.

    Returns:
        [batch, tokens, heads, width], or [1, rows, heads, width], and no weights.
    """
    rows = settings.pop(unpadded.ARGUMENT, None)
    if rows is not None:
        heads = query.shape[1]
        padded = (rows.padded(one.transpose(1, 2).flatten(2)) for one in (query, key, value))
        query, key, value = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in padded)
        attended, _ = attend(module, query, key, value, attention_mask, **settings)
        return rows.packed(attended.flatten(2)).unflatten(-1, (heads, -1)), None
    rate = settings.get("dropout", 0.0)
    is_special = any(settings.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    learns_mask = attention_mask is not None and attention_mask.requires_grad
    if not 0 < rate < 1 or query.device.type != "cpu" or query.shape[1] != key.shape[1] or is_special or learns_mask:
        result: tuple[torch.Tensor, None] = foreign.sdpa(module, query, key, value, attention_mask, **settings)
        return result
    scaling = settings.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = settings.get("is_causal")
    asked = getattr(module, "is_causal", True) if asked is None else asked
    is_causal = attention_mask is None and query.shape[2] > 1 and asked
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril() if is_causal else attention_mask
    return seeded_attention(query, key, value, mask, scaling, rate).transpose(1, 2).contiguous(), None


def seeded_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float, rate: float
) -> torch.Tensor:
    """Return `dropout(softmax(query @ key.T * scaling + mask)) @ value`, [B, H, T, W].

    Args:
        query: [B, H, T, W].
        key: [B, H, S, W].
        value: [B, H, S, W].
        mask: bool, True where a token is seen, or added to the scores; its shape broadcasts to [B, H, T, S]. A token
            that sees none attends to all alike: its result is padding.
        scaling: of the scores.
        rate: the share of weights to drop.
    """
    result: torch.Tensor = _Attention.apply(  # type: ignore[no-untyped-call]  # torch types `apply` for no function
        query, key, value, mask, scaling, rate, seeded.draw_seed(query)
    )
    return result


class _Attention(torch.autograd.Function):
    """Keeps query, key, value and a seed."""

    @staticmethod
    def forward(  # noqa: PLR0913  # what autograd differentiates stands beside what it does not
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        rate: float,
        seed: int,
    ) -> torch.Tensor:
        # Heads stand behind tokens here: laid out once for all products of both passes, each of which would do it.
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        ctx.save_for_backward(query, key, value, mask)
        ctx.scaling, ctx.rate, ctx.seed = scaling, rate, seed
        return keep_whole(lambda: _attended(query, key, value, mask, scaling, rate, seed), query, key, value, mask)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value, mask = ctx.saved_tensors
        grad, scaling, kept_scale = grads[0].contiguous(), ctx.scaling, 1 / (1 - ctx.rate)
        weights_BHTS = _weights(query, key, mask, scaling)
        grad_weights_BHTS, kept_BHTS = _product(grad, value.mT, kept_scale), weights_BHTS.clone()
        seeded.drop_in_place([grad_weights_BHTS, kept_BHTS], ctx.rate, ctx.seed)
        grad_value = _product(kept_BHTS.mT, grad, kept_scale)
        del kept_BHTS
        grad_scores_BHTS = _softmax_backward(grad_weights_BHTS, weights_BHTS)
        del grad_weights_BHTS, weights_BHTS
        grad_query = _product(grad_scores_BHTS, key, scaling)
        return grad_query, _product(grad_scores_BHTS.mT, query, scaling), grad_value, None, None, None, None


def _attended(  # noqa: PLR0913  # as above
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    rate: float,
    seed: int,
) -> torch.Tensor:
    """Return the result of the attention, [B, H, T, W]."""
    weights_BHTS = _weights(query, key, mask, scaling)
    seeded.drop_in_place([weights_BHTS], rate, seed)
    return _product(weights_BHTS, value, 1 / (1 - rate))


def _weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """Return the weights of attention before any is dropped, [B, H, T, S]."""
    scores_BHTS = _product(query, key.mT, scaling)
    if mask is not None and mask.dtype == torch.bool:
        scores_BHTS.masked_fill_(~mask, torch.finfo(scores_BHTS.dtype).min)
    elif mask is not None:
        scores_BHTS += mask
    return _softmax(scores_BHTS)


def _product(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Return `scale * left @ right` for each head, scaled before it is rounded and without a pass of its own."""
    added = left.new_empty(1, 1, 1)  # times 0: its values do not count
    product = torch.baddbmm(added, left.flatten(0, 1), right.flatten(0, 1), beta=0, alpha=scale)
    return product.unflatten(0, left.shape[:2])


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Return a softmax over the last dimension; short rows of half precision go through fp32 where that is quicker.

    torch's kernel for a CPU takes 32 numbers of half precision at a time, and what is left of a row one by one: 30 in a
    row take four times as long as in fp32, casts included, and 48 half as long again (AVX-512, torch 2.13).
    """
    width = scores.shape[-1]
    if scores.dtype.itemsize == 2 and width < _SHORT_ROW and width % _AT_A_TIME:
        return torch.softmax(scores.float(), -1).to(scores.dtype)
    return torch.softmax(scores, -1)


def _softmax_backward(grad: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the scores; in half precision rows that the kernel takes one by one go through fp32."""
    if grad.dtype.itemsize == 2 and grad.shape[-1] < _AT_A_TIME:
        return foreign_torch.softmax_backward(grad.float(), weights.float()).to(grad.dtype)
    return foreign_torch.softmax_backward(grad, weights)
