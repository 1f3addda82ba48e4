"""Attention of grouped heads by a kernel that keeps no scores, on cards where torch has none for groups.

Several heads of the query share one of key and value. Without a mask, transformers hands them to torch as they are
(`enable_gqa`). Only the flash and cuDNN kernels take that: in fp32 on any card, and in fp16 on a card older than
Ampere, torch falls back to plain math, which makes the scores in fp32, [batch, heads, tokens, tokens], and keeps two
such matrices for the backward. Here key and value are then repeated for each head first, and the memory-efficient
kernel takes them. The result is the same: the math repeats them too, in fp32, so repeating never takes more.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ftkit.models import foreign
from ftkit.models.kernels.scores import repeated
from ftkit.models.kernels.short_attention import attend as attend_by_kind

NAME = "sdpa_grouped"
"""What transformers calls it."""


def make_grouped(model: nn.Module) -> None:
    """Let the attention of a model with grouped heads choose, at each call, whether to repeat them.

    A model without such heads, with an attention of its own, or for which something else than torch's attention was
    asked for keeps what it has.

    Args:
        model: a transformers model; changed in place.
    """
    has_groups = any(getattr(module, "num_key_value_groups", 1) > 1 for module in model.modules())
    if has_groups and foreign.attends_by_sdpa(model):
        foreign.attend_by(model, NAME, attend)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `short_attention.attend` does, on key and value repeated for each head where no kernel takes groups."""
    groups = query.shape[1] // key.shape[1]
    is_left_to_torch = groups > 1 and foreign.hands_groups_over(attention_mask, key, value)
    if is_left_to_torch and not takes_groups(query, key, value, settings.get("dropout", 0.0)):
        key, value = (repeated(tensor, groups) for tensor in (key, value))
    return attend_by_kind(module, query, key, value, attention_mask, **settings)


def takes_groups(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Return whether torch has a kernel for grouped heads here; torch itself is asked, with the tensors of the call.

    Args:
        query: [batch, heads, tokens, width].
        key: [batch, heads of the key, tokens, width].
        value: as the key.
        dropout: the share of weights that is dropped.
    """
    if query.device.type != "cuda":
        return True
    call = torch.backends.cuda.SDPAParams(query, key, value, None, dropout, True, True)
    return torch.backends.cuda.can_use_flash_attention(call) or torch.backends.cuda.can_use_cudnn_attention(call)


@contextmanager
def judged_by(judge: Callable[..., bool]) -> Iterator[None]:
    """Let another function stand for `takes_groups`, for tensors that are not on the card that is meant.

    Args:
        judge: takes and returns what `takes_groups` does.
    """
    with foreign.patched(sys.modules[__name__], "takes_groups", judge):
        yield
