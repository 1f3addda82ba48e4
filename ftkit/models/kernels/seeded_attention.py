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
from ftkit.models.kernels import unpadded
from ftkit.models.kernels.kept_products import keep_whole
from ftkit.models.kernels.scores import is_causal_call, product, softmax_backward, weights_of
from ftkit.models.kernels.short_attention import attend as attend_without_dropout

NAME = "sdpa_seeded"
"""What transformers calls it."""


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
    """Attend as `short_attention.attend` does, by seed on a CPU where weights are dropped.

    Where the settings have `Rows`, query, key and value are [1, heads, rows, width], and what is returned is
    [1, rows, heads, width].
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
        return attend_without_dropout(module, query, key, value, attention_mask, **settings)
    scaling = settings.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_causal = is_causal_call(module, query, attention_mask, settings)
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
        weights_BHTS = weights_of(query, key, mask, scaling)
        grad_weights_BHTS, kept_BHTS = product(grad, value.mT, kept_scale), weights_BHTS.clone()
        seeded.drop_in_place([grad_weights_BHTS, kept_BHTS], ctx.rate, ctx.seed)
        grad_value = product(kept_BHTS.mT, grad, kept_scale)
        del kept_BHTS
        grad_scores_BHTS = softmax_backward(grad_weights_BHTS, weights_BHTS)
        del grad_weights_BHTS, weights_BHTS
        grad_query = product(grad_scores_BHTS, key, scaling)
        return grad_query, product(grad_scores_BHTS.mT, query, scaling), grad_value, None, None, None, None


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
    weights_BHTS = weights_of(query, key, mask, scaling)
    seeded.drop_in_place([weights_BHTS], rate, seed)
    return product(weights_BHTS, value, 1 / (1 - rate))
