"""Cross-entropy of a language model's last layer without whole logits.

The logits of a micro-batch are its largest tensor, [N, V], and autograd holds four of that size at once: logits, their
fp32 copy, its log-softmax and the gradient. Here the rows that carry loss go through the head in chunks. The gradient
of the logits follows from a chunk alone, `softmax(logits) - one_hot(label)`, and takes their place. So the gradients of
the hidden states, and of the head where it trains, are made in the forward, and no chunk outlives its turn.

Dimension letters: N row that carries loss, C row of a chunk, D model, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ftkit.models import bnb
from ftkit.models.kernels import on_cpu

_FEWEST_ROWS, _FEWEST_BYTES_OF_TRAINED = 128, 2048
"""Rows of a chunk, and bytes of the widest copy of one of its columns: with fewer, reading the head's weight takes
longer than multiplying by it, on any processor. For a head that trains each further chunk reads and writes its gradient
too, in fp32 and with a product to add in half precision."""
_ALIGNED = 8
"""Numbers in half precision that are 16 bytes."""
_SCORED_AT_ONCE = 2**19
"""Logits whose fp32 copy, 2 MiB, a core's own cache holds: a CPU goes through it six times, in a third of the time that
it takes to go through a whole chunk of 512 rows of 49,152 logits, and in two thirds of that of 128 rows."""


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


def num_chunk_rows(rows_ND: torch.Tensor, vocabulary: int, *, trains: bool) -> int:
    """Return the rows of a chunk: so many that its logits are as large as all hidden states, but not too few.

    Args:
        rows_ND: all hidden states.
        vocabulary: logits of a row.
        trains: whether the head does.
    """
    widest = rows_ND.element_size() if on_cpu.is_on_cpu(rows_ND) else _wide(rows_ND).itemsize  # a CPU copies few rows
    fewest = _FEWEST_BYTES_OF_TRAINED // widest if trains else _FEWEST_ROWS
    return max(fewest, rows_ND.numel() // vocabulary)


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
        wide = _wide(rows_ND)
        grad_rows_ND = torch.empty_like(rows_ND) if needs[0] else None
        matrix_VD = bnb.matrix_of(head)
        size = num_chunk_rows(rows_ND, len(matrix_VD), trains=needs[1])
        # Summed in fp32 over the chunks, like the one sum that a single product is.
        summed = rows_ND.dtype if len(rows_ND) <= size else wide
        grad_weight = torch.zeros_like(weight, dtype=summed) if needs[1] else None
        grad_bias = torch.zeros_like(cast(torch.Tensor, bias), dtype=wide) if needs[2] else None
        loss = torch.zeros((), dtype=wide, device=rows_ND.device)
        parts = _parts(head, matrix_VD, rows_ND)
        for start in range(0, len(rows_ND), size):
            rows_CD, labels_C = rows_ND[start : start + size], labels_N[start : start + size]
            grad_CV = _logits(head, matrix_VD, rows_CD, parts)
            loss += _score(grad_CV, labels_C, tail, any(needs))
            if grad_rows_ND is not None:
                grad_rows_ND[start : start + size] = _grad_rows(grad_CV, matrix_VD, parts)
            if grad_weight is not None:
                is_transposed = grad_weight.shape != matrix_VD.shape
                total_VD = grad_weight.t() if is_transposed else grad_weight
                for part in parts:
                    _add_product(total_VD[part], grad_CV[:, part], rows_CD)
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


def _parts(head: nn.Module, matrix_VD: torch.Tensor, rows_ND: torch.Tensor) -> list[slice]:
    """Return the parts of the vocabulary that are multiplied by themselves: all of it, but on a GPU in half precision.

    Where logits are no multiple of 16 bytes cuBLAS has nothing but kernels of the time before Ampere: 512 x 50,257 of
    GPT-2 took an H100 420 microseconds, and 512 x 50,264 took 65; the two products of the gradient 595 and 152 (torch
    2.11). So the last ones, fewer than 8, are cut off.

    Args:
        head: as `cross_entropy` takes it.
        matrix_VD: its weight, unpacked.
        rows_ND: hidden states.
    """
    logits = len(matrix_VD)
    left = logits % _ALIGNED
    is_plain = type(head) is nn.Linear and head.bias is None
    if not left or not is_plain or rows_ND.element_size() != 2 or on_cpu.is_on_cpu(rows_ND):
        return [slice(0, logits)]
    return [slice(0, logits - left), slice(logits - left, logits)]


def _logits(head: nn.Module, matrix_VD: torch.Tensor, rows_CD: torch.Tensor, parts: list[slice]) -> torch.Tensor:
    """Return the logits of a chunk, [C, V]; of several parts in rows that each begin at a multiple of 16 bytes."""
    if len(parts) == 1:
        return cast(torch.Tensor, type(head).forward(head, rows_CD))
    padded_CW = rows_CD.new_empty(len(rows_CD), -(-len(matrix_VD) // _ALIGNED) * _ALIGNED)
    for part in parts:
        torch.mm(rows_CD, matrix_VD[part].t(), out=padded_CW[:, part])
    return padded_CW[:, : len(matrix_VD)]


def _grad_rows(grad_CV: torch.Tensor, matrix_VD: torch.Tensor, parts: list[slice]) -> torch.Tensor:
    """Return the gradient of the hidden states of a chunk, [C, D]."""
    first, *others = parts
    grad_CD = grad_CV[:, first] @ matrix_VD[first]
    for part in others:
        grad_CD.addmm_(grad_CV[:, part], matrix_VD[part])
    return grad_CD


def _score(logits_CV: torch.Tensor, labels_C: torch.Tensor, tail: Tail, wants_gradient: bool) -> torch.Tensor:
    """Return the loss of a chunk, whose logits become their gradient.

    Args:
        logits_CV: what the head returned; overwritten, by nothing of use where no gradient is wanted.
        labels_C: of the rows.
        tail: is applied first.
        wants_gradient: whether there is a backward.
    """
    score = torch.ops.ftkit.score_rows if on_cpu.is_on_cpu(logits_CV) else _score_rows
    loss: torch.Tensor = score(logits_CV, labels_C, tail.scale, tail.cap, wants_gradient)
    return loss


def _score_rows(
    logits_CV: torch.Tensor, labels_C: torch.Tensor, scale: float, cap: float | None, wants_gradient: bool
) -> torch.Tensor:
    """Return the loss of all rows, in fp32 at least."""
    wide_CV = logits_CV.to(_wide(logits_CV))
    slope_CV = None
    if scale != 1.0:
        wide_CV.mul_(scale)
    if cap is not None:
        wide_CV.div_(cap).tanh_()
        slope_CV = 1 - wide_CV.square() if wants_gradient else None
        wide_CV.mul_(cap)
    column = labels_C.unsqueeze(1)
    wide_CV.sub_(wide_CV.amax(1, keepdim=True))
    own = wide_CV.gather(1, column)
    total = wide_CV.exp_().sum(1, keepdim=True)
    if wants_gradient:
        wide_CV.div_(total)
        wide_CV.scatter_add_(1, column, torch.full_like(own, -1.0))
        if slope_CV is not None:
            wide_CV.mul_(slope_CV)
        if scale != 1.0:
            wide_CV.mul_(scale)
        logits_CV.copy_(wide_CV)  # itself in fp32, which torch sees
    return (total.log() - own).sum()


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


torch.library.define(
    "ftkit::score_rows",
    "(Tensor(a!) logits, Tensor labels, float scale, float? cap, bool wants_gradient) -> Tensor",
)
"""`_score_rows`, a few rows at a time.

An operator of its own, so that a plan takes one of it for each chunk and not ten for each few rows.
"""


@torch.library.impl("ftkit::score_rows", "CPU")
def _score_few_at_a_time(
    logits_CV: torch.Tensor, labels_C: torch.Tensor, scale: float, cap: float | None, wants_gradient: bool
) -> torch.Tensor:
    rows = max(1, _SCORED_AT_ONCE // logits_CV.shape[1])
    loss = logits_CV.new_zeros((), dtype=_wide(logits_CV))
    for some_CV, some_C in zip(logits_CV.split(rows), labels_C.split(rows), strict=True):
        loss += _score_rows(some_CV, some_C, scale, cap, wants_gradient)
    return loss


@torch.library.impl("ftkit::score_rows", "Meta")
def _score_nothing(logits_CV: torch.Tensor, *_: object) -> torch.Tensor:
    """Return a loss without a value."""
    return logits_CV.new_empty((), dtype=_wide(logits_CV))


def _add_product(total_VD: torch.Tensor, grad_CV: torch.Tensor, rows_CD: torch.Tensor) -> None:
    if total_VD.dtype == rows_CD.dtype:
        total_VD.addmm_(grad_CV.t(), rows_CD)
    else:
        total_VD += grad_CV.t() @ rows_CD
