"""The last layer of an encoder that classifies, computed at the first place alone, which is all that its head reads.

BERT and its kin pool a sequence by its first token. So the last layer needs keys and values of all tokens, but the
query, what follows from it, and the MLP of the first token only: of a layer of 12 D**2 weights, 10 D**2 then multiply
one token instead of T. Values and gradients are those of the whole layer, since nothing reads what is left out.

Dimension letters: B batch, T token, D model.
"""

from typing import Any, cast

import torch
from torch import nn

from ftkit.models import foreign
from ftkit.models.kernels.unpadded import ARGUMENT
from ftkit.models.structure.heads import classifies
from ftkit.models.structure.layers import transformer_layers


def pool_early(model: nn.Module) -> None:
    """Let the last layer of a classifier of BERT's kin return the first place alone, where that layer trains.

    A frozen last layer is left as it is, since a frozen trunk may be computed once and kept.

    Args:
        model: a transformers model, without an adapter around it; changed in place.
    """
    last = pooled_layer(model)
    if last is not None and any(one.requires_grad for one in last.parameters()):
        attention = cast(nn.Module, last.attention)
        vars(attention)["forward"] = _FirstPlace(attention)


def pooled_layer(model: nn.Module) -> nn.Module | None:
    """Return the last layer of a model whose head reads the first place alone; None for a model of another kind.

    Args:
        model: a transformers model, without an adapter around it.
    """
    layers = transformer_layers(model) if classifies(model) else None
    last = None if layers is None else layers[1][-1]
    return last if type(getattr(last, "attention", None)).__name__ in foreign.POOLED_BY_FIRST else None


_OF_DECODERS = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values")
"""Arguments that an encoder is called without."""


class _FirstPlace:
    """The forward of BERT's attention, with its projection and its norm, for the first token of each sequence."""

    def __init__(self, attention: nn.Module) -> None:
        self._attention = attention

    def __call__(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **settings: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return [B, 1, D], and what the attention returns beside it; `Rows` among the settings say what is given."""
        attention: Any = self._attention
        inner = attention.self
        attend = foreign.sdpa_kin(inner.config)
        has_rows = attention_mask is None or attention_mask.dim() == 4  # [B, 1, T or 1, T]
        if attend is None or not has_rows or any(settings.get(name) is not None for name in _OF_DECODERS):
            whole: tuple[torch.Tensor, torch.Tensor | None] = type(attention).forward(
                attention, hidden_states, attention_mask, **settings
            )
            return whole
        rows = settings.pop(ARGUMENT, None)
        # [B, 1, D], as the modules want it
        firsts_BD = hidden_states[:, :1] if rows is None else hidden_states[0, rows.firsts][:, None]
        query = _heads(inner.query(firsts_BD), inner)
        seen = (projection(hidden_states) for projection in (inner.key, inner.value))
        key, value = (_heads(one if rows is None else rows.padded(one), inner) for one in seen)
        given = {name: value for name, value in settings.items() if name not in _OF_DECODERS}
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        rate = inner.dropout.p if inner.training else 0.0
        result, weights = attend(inner, query, key, value, mask, dropout=rate, scaling=inner.scaling, **given)
        return attention.output(result.flatten(2), firsts_BD), weights


def _heads(rows_BTD: torch.Tensor, inner: Any) -> torch.Tensor:
    """Return [batch, heads, tokens, width]."""
    heads: torch.Tensor = rows_BTD.unflatten(-1, (-1, inner.attention_head_size)).transpose(1, 2)
    return heads
