"""Attend without values as torch does on a card: each kernel by the operators that it is made of there."""

from typing import Any

import torch
from torch.nn import functional

from ftkit.machine.hardware import Gpu
from ftkit.plan.tracing.attention_choice import AttentionCall, Kernel, choose

MASK_ALIGNMENT = 16
"""The memory-efficient kernel wants rows of the mask to be multiples of this many elements (torch,
aten/src/ATen/native/transformers/attention.cpp, preprocess_mask)."""


def attend(  # noqa: PLR0913  # the arguments of scaled_dot_product_attention
    gpu: Gpu,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Do what `scaled_dot_product_attention` does on a card.

    Args:
        gpu: the card, before torch's own arguments.
        query: [batch, heads, tokens, width].
        key: [batch, heads of the key, tokens, width].
        value: as the key, or of another width.
        attn_mask: True, or a summand, for what is seen.
        dropout_p: the share of weights that is dropped.
        is_causal: whether later tokens are masked.
        scale: of the scores; None: by the width.
        enable_gqa: whether the key may have fewer heads.

    Returns:
        As torch does: [batch, heads, tokens, width of the values].
    """
    call = call_of(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    aten: Any = torch.ops.aten
    out: torch.Tensor
    match choose(call, gpu):
        case Kernel.FLASH:
            out = _flash(query, key, value, dropout_p, is_causal, scale)
        case Kernel.CUDNN:
            mask = _additive(attn_mask, query.dtype)
            operator = aten._scaled_dot_product_cudnn_attention
            out = operator(query, key, value, mask, call.needs_grad, dropout_p, is_causal, False, scale=scale)[0]
        case Kernel.EFFICIENT:
            bias = None if attn_mask is None else _bias(attn_mask, query, key)
            operator = aten._scaled_dot_product_efficient_attention
            out = operator(query, key, value, bias, call.needs_grad, dropout_p, is_causal, scale=scale)[0]
        case _:
            out = _math(query, key, value, attn_mask, dropout_p, is_causal, scale)
    return out


def takes_groups(gpu: Gpu, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Return whether a kernel of a card takes keys of fewer heads than the query, without a mask.

    Args:
        gpu: the card.
        query: [batch, heads, tokens, width].
        key: [batch, heads of the key, tokens, width].
        value: as the key.
        dropout: the share of weights that is dropped.
    """
    call = call_of(query, key, value, None, dropout, is_causal=True, enable_gqa=True)
    return choose(call, gpu) in (Kernel.FLASH, Kernel.CUDNN)


def call_of(  # noqa: PLR0913  # the arguments of scaled_dot_product_attention
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,  # noqa: ARG001  # torch's signature; no rule asks for it
    enable_gqa: bool = False,
) -> AttentionCall:
    """Return the facts of a call that decide its kernel; the arguments are those of `attend` without the card."""
    three = query, key, value
    first, second, third = three
    return AttentionCall(
        (first.dtype, second.dtype, third.dtype),
        (first.shape[-3], second.shape[-3], third.shape[-3]),
        (first.shape[-1], second.shape[-1], third.shape[-1]),
        (first.shape[-2], second.shape[-2]),
        has_mask=attn_mask is not None,
        is_causal=is_causal,
        dropout=dropout_p,
        needs_grad=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in three),
        takes_groups=enable_gqa,
        mask_needs_grad=attn_mask is not None and attn_mask.requires_grad,
        mask_fits=attn_mask is None or _fits(attn_mask, (*first.shape[:-1], second.shape[-2])),
    )


def _fits(mask: torch.Tensor, scores: tuple[int, ...]) -> bool:
    """Return whether a mask has the last two dimensions of the scores or all of them, each as they are or 1."""
    named = scores[-mask.dim() :]
    return mask.dim() in (2, 4) and all(one in (1, whole) for one, whole in zip(mask.shape, named, strict=False))


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, is_causal: bool, scale: float | None
) -> torch.Tensor:
    """Pad heads to multiples of 8 (attention.cpp, pad_last_dim) and attend."""
    aten: Any = torch.ops.aten
    width = query.shape[-1]
    padded = [_pad_to(tensor, 8) for tensor in (query, key, value)]
    scale = scale or width**-0.5
    out: torch.Tensor = aten._scaled_dot_product_flash_attention(*padded, dropout, is_causal, False, scale=scale)[0]
    return out[..., :width] if out.shape[-1] != width else out


def _bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the additive mask that the memory-efficient kernel gets: in the query's dtype, with aligned rows."""
    additive = _additive(mask, query.dtype)
    assert additive is not None
    mask = _pad_to(additive, MASK_ALIGNMENT)[..., : key.shape[-2]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[-2])


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.tensor(float("-inf"), dtype=dtype))


def _pad_to(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -tensor.shape[-1] % multiple
    return functional.pad(tensor, (0, missing)) if missing else tensor


def _math(  # noqa: PLR0913  # as above
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Attend by plain products, in fp32 (attention.cpp, _scaled_dot_product_attention_math).

    Not torch's own operator, which adds the mask to a copy of the scores where a mode watches and in place where none
    does. Every local lives until the end, as theirs do; they return the weights too, in the dtype of the query.
    """
    dtype, root = query.dtype, (scale or query.shape[-1] ** -0.5) ** 0.5
    mask = _additive(mask, dtype)
    whole, keys, values = (_in_fp32(tensor) for tensor in (query, key, value))
    scaled = whole * root
    if is_causal:
        lower = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        mask = _additive(lower, scaled.dtype)
    if (groups := query.shape[-3] // key.shape[-3]) > 1:
        keys, values = keys.repeat_interleave(groups, -3), values.repeat_interleave(groups, -3)
    scores = scaled @ (keys.transpose(-2, -1) * root)
    if mask is not None:
        scores += mask
    # `attn = at::_safe_softmax(attn, -1)`: the scores are gone then.
    scores = torch._safe_softmax(scores, -1)
    if dropout:
        scores = functional.dropout(scores, dropout)
    out = scores @ values
    returned = out.to(dtype), scores.to(dtype)
    return returned[0]


def _in_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.element_size() < torch.float32.itemsize else tensor
