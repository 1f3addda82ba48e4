"""Cross-entropy of a language model's last layer without whole logits.

The logits of a micro-batch are its largest tensor, [N, V], and autograd holds four of that size at once: logits, their
fp32 copy, its log-softmax and the gradient. Here the rows that carry loss go through the head in chunks. The gradient
of a chunk's logits follows from the chunk alone, `softmax(logits) - one_hot(label)`, so that the gradients of the
hidden states, and of the head where it trains, are made in the forward, and no chunk outlives its turn.

Dimension letters: N row that carries loss, C row of a chunk, D model, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ftkit.models import bnb

_FEWEST_ROWS, _FEWEST_ROWS_OF_TRAINED = 128, 512
"""Rows of a chunk: with fewer, reading the head's weight takes longer than multiplying by it, on any processor. For a
head that trains each chunk reads and writes its gradient too, in fp32 and with a product to add in half precision."""


@dataclass(frozen=True)
class Tail:
    """The operations that a model applies to what its head returns.

    Attributes:
        scale: multiplies the logits (Cohere, Granite).
        cap: then each becomes `cap * tanh(logit / cap)` (Gemma 2); None: it does not.
    """

    scale: float = 1.0
    cap: float | None = None


def cross_entropy(rows_ND: torch.Tensor, head: nn.Module, labels_N: torch.Tensor, tail: Tail = Tail()) -> torch.Tensor:
    """Return the cross-entropy summed over rows, with the gradients of the rows and of a head that trains.

    Equals torch's function of whole logits up to rounding: a cap is applied in fp32, not in the compute dtype.

    Args:
        rows_ND: hidden states, in the compute dtype; N may be 0.
        head: `nn.Linear`, transformers' Conv1D, or bitsandbytes' Linear4bit.
        labels_N: int64, each in [0, V).
        tail: what comes behind the head.

    Returns:
        A scalar in fp32, or in fp64 where the rows are.
    """
    weight, bias = cast(torch.Tensor, head.weight), cast(torch.Tensor | None, head.bias)
    result: torch.Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch types `apply` for no function
        rows_ND, weight, bias, head, labels_N, tail, torch.is_grad_enabled()
    )
    return result


def num_chunk_rows(num_rows: int, width: int, vocabulary: int, *, trains: bool) -> int:
    """Return the rows of a chunk: so many that its logits are as large as all hidden states, but not too few.

    Args:
        num_rows: of all hidden states.
        width: of one.
        vocabulary: logits of a row.
        trains: whether the head does.
    """
    return max(_FEWEST_ROWS_OF_TRAINED if trains else _FEWEST_ROWS, num_rows * width // vocabulary)


class _CrossEntropy(torch.autograd.Function):
    """Keeps the gradients, which the forward has made."""

    @staticmethod
    def forward(  # noqa: PLR0913  # what autograd differentiates stands beside what it does not
        ctx: Any,
        rows_ND: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: nn.Module,
        labels_N: torch.Tensor,
        tail: Tail,
        wants_gradients: bool,
    ) -> torch.Tensor:
        needs = [wants_gradients and need for need in ctx.needs_input_grad[:3]]
        wide = torch.promote_types(rows_ND.dtype, torch.float32)
        grad_rows_ND = torch.empty_like(rows_ND) if needs[0] else None
        # Summed in fp32 over the chunks, like the one sum that a single product is.
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
        grad_bias = torch.zeros_like(cast(torch.Tensor, bias), dtype=wide) if needs[2] else None
        matrix_VD = bnb.matrix_of(head)
        size = num_chunk_rows(len(rows_ND), *reversed(matrix_VD.shape), trains=needs[1])
        loss = torch.zeros((), dtype=wide, device=rows_ND.device)
        for start in range(0, len(rows_ND), size):
            rows_CD, labels_C = rows_ND[start : start + size], labels_N[start : start + size]
            logits_CV = type(head).forward(head, rows_CD).to(wide)
            part, grad_CV = _score(logits_CV, labels_C, tail, any(needs))
            loss += part
            if grad_CV is None:
                continue
            grad_CV = grad_CV.to(rows_ND.dtype)
            if grad_rows_ND is not None:
                grad_rows_ND[start : start + size] = grad_CV @ matrix_VD
            if grad_weight is not None:
                is_transposed = grad_weight.shape != matrix_VD.shape
                _add_product(grad_weight.t() if is_transposed else grad_weight, grad_CV, rows_CD)
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0, dtype=wide)
        ctx.save_for_backward(grad_rows_ND, grad_weight, grad_bias)
        ctx.dtypes = (rows_ND.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        made = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = (None if one is None else (one * grads[0]).to(dtype) for one, dtype in made)
        return (*scaled, None, None, None, None)


def _score(
    logits_CV: torch.Tensor, labels_C: torch.Tensor, tail: Tail, wants_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the loss of a chunk, and the gradient of what the head returned in the place of that.

    Args:
        logits_CV: in fp32; overwritten, so that one tensor of this size is there.
        labels_C: of the rows.
        tail: is applied first.
        wants_gradient: whether there is a backward.
    """
    slope_CV = None
    if tail.scale != 1.0:
        logits_CV.mul_(tail.scale)
    if tail.cap is not None:
        logits_CV.div_(tail.cap).tanh_()
        slope_CV = 1 - logits_CV.square() if wants_gradient else None
        logits_CV.mul_(tail.cap)
    column = labels_C.unsqueeze(1)
    logits_CV.sub_(logits_CV.amax(1, keepdim=True))
    own = logits_CV.gather(1, column)
    total = logits_CV.exp_().sum(1, keepdim=True)
    loss = (total.log() - own).sum()
    if not wants_gradient:
        return loss, None
    grad_CV = logits_CV.div_(total)
    grad_CV.scatter_add_(1, column, torch.full_like(own, -1.0))
    if slope_CV is not None:
        grad_CV.mul_(slope_CV)
    return loss, grad_CV.mul_(tail.scale) if tail.scale != 1.0 else grad_CV


def _add_product(total_VD: torch.Tensor, grad_CV: torch.Tensor, rows_CD: torch.Tensor) -> None:
    if total_VD.dtype == rows_CD.dtype:
        total_VD.addmm_(grad_CV.t(), rows_CD)
    else:
        total_VD += grad_CV.t() @ rows_CD
