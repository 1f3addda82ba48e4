"""Let a language model return its loss, without logits, when it is asked with targets.

The base model runs as it is; the rows that carry loss are gathered; then the head module is called with their labels,
so that whoever hooks into that module (ZeRO-3 gathers its weight there) finds it called as ever.

Dimension letters: B batch, T token, N row that carries loss, D model.
"""

from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from ftkit.models import bnb
from ftkit.models.kernels.cross_entropy import Tail, cross_entropy


@dataclass(frozen=True)
class Targets:
    """What a language model is asked to predict.

    Attributes:
        places: [N] int64, the rows of hidden states [B * T, D] whose next token carries loss.
        labels: [N] int64, those next tokens.
        compares: return the loss beside the distance of its gradient from torch's own: [2], and not the loss alone.
    """

    places: torch.Tensor
    labels: torch.Tensor
    compares: bool = False

    @classmethod
    def at(cls, places_N: torch.Tensor, labels_BT: torch.Tensor, *, compares: bool = False) -> "Targets":
        """Return the targets at places of a micro-batch, whose labels stand one token behind the rows."""
        return cls(places_N, labels_BT.flatten()[places_N + 1], compares)


def chunk_loss(model: nn.Module) -> None:
    """Let a causal language model take `targets`, where its head is a linear layer behind its base model.

    A head with an adapter, or one that is saved whole beside adapters, stays as it is, and so does a model whose head
    is inside its base or comes in several parts.

    Args:
        model: a transformers model, without an adapter around it; changed in place.
    """
    head = chunkable_head(model)
    if head is not None:
        vars(head)["forward"] = _HeadForward(head, _tail(model))
        vars(model)["forward"] = _ModelForward(model)


def is_chunked(model: nn.Module) -> bool:
    """Return whether `chunk_loss` has changed a model."""
    return isinstance(vars(model).get("forward"), _ModelForward)


def chunkable_head(model: nn.Module) -> nn.Module | None:
    """Return the layer that makes logits of the base model's result; None where the loss cannot be made in chunks.

    Args:
        model: a transformers model.
    """
    head, base = cast(Any, model).get_output_embeddings(), cast(Any, model).base_model
    is_behind = head is not None and base is not model and all(head is not module for module in base.modules())
    return head if is_behind and bnb.is_linear(head) else None


def _tail(model: Any) -> Tail:
    """Return what a model does with its logits, by the names that transformers 5.23 has for it.

    `final_logit_softcapping`: models/gemma2 and kin; `logit_scale`: models/cohere and kin; `logits_scaling`:
    models/granite and kin; `lm_head_multiplier`: models/falcon_h1.
    """
    config = model.config.get_text_config()
    scale = _number(model, "logit_scale") * _number(model.base_model, "lm_head_multiplier")
    return Tail(scale / _number(config, "logits_scaling"), getattr(config, "final_logit_softcapping", None))


def _number(owner: Any, name: str) -> float:
    value = getattr(owner, name, None)
    return float(value) if isinstance(value, int | float) else 1.0


class _ModelForward:
    """The forward of a causal language model: of its base and head with targets, else its own."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        update_wrapper(self, type(model).forward.__get__(model))  # its signature is asked for

    def __call__(self, *arguments: Any, targets: Targets | None = None, **settings: Any) -> Any:
        model = cast(Any, self._model)
        if targets is None:
            return type(model).forward(model, *arguments, **settings)
        given = {name: value for name, value in settings.items() if value is not None}
        hidden_BTD = model.base_model(*arguments, **given)[0]
        rows_ND = hidden_BTD.flatten(0, 1).index_select(0, targets.places)
        del hidden_BTD
        return model.get_output_embeddings()(rows_ND, targets)


class _HeadForward:
    """The forward of a head: the loss of rows with targets, else its own."""

    def __init__(self, head: nn.Module, tail: Tail) -> None:
        self._head, self._tail = head, tail

    def __call__(self, rows: torch.Tensor, targets: Targets | None = None) -> torch.Tensor:
        if targets is None:
            logits: torch.Tensor = type(self._head).forward(self._head, rows)
            return logits
        if targets.compares:
            return _compare(rows, self._head, targets.labels, self._tail)
        return cross_entropy(rows, self._head, targets.labels, self._tail)


def _compare(rows_ND: torch.Tensor, head: nn.Module, labels_N: torch.Tensor, tail: Tail) -> torch.Tensor:
    """Return [loss in chunks, relative difference of the rows' gradients to torch's own]."""
    with torch.enable_grad():
        rows_ND = rows_ND.detach().requires_grad_()
        loss = cross_entropy(rows_ND, head, labels_N, tail)
        (ours_ND,) = torch.autograd.grad(loss, rows_ND)
        logits = type(head).forward(head, rows_ND).float() * tail.scale
        capped = logits if tail.cap is None else tail.cap * torch.tanh(logits / tail.cap)
        plain = functional.cross_entropy(capped, labels_N, reduction="sum")
        (theirs_ND,) = torch.autograd.grad(plain, rows_ND)
    missed = (ours_ND - theirs_ND).float().norm() / theirs_ND.float().norm().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.stack([loss.detach().float(), missed])
