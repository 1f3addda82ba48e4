"""Liger's kernels as operators: what each allocates, keeps for the backward and writes over.

From linkedin/Liger-Kernel, src/liger_kernel/ops and src/liger_kernel/transformers, versions 0.4.1 to 0.8.2. Its kernels
are Triton's, which allocate nothing: whatever torch's allocator sees stands in the Python around them, and here. A
kernel is an operation in place that moves as many bytes, so that it has a time too.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.rows import Row, card
from benchmarks.stacks import versions

OLDEST, NEWEST = (0, 4, 1), (0, 8, 2)
"""The versions that were read; before them a norm made its weight's gradient for each token."""
UNSHIFTED = (0, 5, 6)
"""From here on labels move by one in the place of the hidden states (model/loss_utils.py)."""
IN_HALF = (0, 5, 0)
"""From here on the logits of a chunk stay in the type that they are computed in (ops/fused_linear_cross_entropy.py)."""
UNSCALED = (0, 5, 3)
"""From here on the kernel divides by the number of targets, and nobody does after it."""
SUMMED_IN_FP32 = (0, 6, 2)
"""From here on the gradient of the head's weight is made whole for each chunk, in fp32, and then added."""
ADDED_IN_FP32 = (0, 8, 1)
"""From here on a product in half precision adds itself to an fp32 gradient, on cards of capability 8 and more."""
KINDS = ("llama", "mistral", "qwen2", "phi3", "gemma")
"""Types of models that all these kernels replace parts of in the same way (transformers/monkey_patch.py)."""
MULTIPROCESSORS = {
    "T4": 40,
    "V100-16GB": 80,
    "V100-32GB": 80,
    "RTX 2080 Ti": 68,
    "RTX 3060": 28,
    "RTX 3080": 68,
    "RTX 3090": 82,
    "A10": 72,
    "A10G": 80,
    "A40": 84,
    "RTX A6000": 84,
    "A100-40GB": 108,
    "A100-80GB": 108,
    "RTX 4080": 76,
    "RTX 4090": 128,
    "L4": 58,
    "L40S": 142,
    "H100": 132,
    "H100 PCIe": 114,
    "H200": 132,
}
"""Of a card, as its vendor's data sheet has them: a norm's backward has a row of partial sums for each."""
Version = tuple[int, ...]


def is_used(row: Row) -> bool:
    """Return whether a row says that it ran with Liger's kernels."""
    return "liger" in (row["fused_kernels"] or "").lower()


def version_of(row: Row) -> Version | None:
    """Return the version of Liger that a row names, or None."""
    said = versions.named(row, "liger[-_ ]kernel")
    return None if said is None else (*versions.numbers(said), 0, 0)[:3]


def reason_unknown(row: Row, kind: str) -> str | None:
    """Return which fact of a row with Liger's kernels is not known, or None.

    Args:
        row: with a card.
        kind: transformers' type of its model.
    """
    found, gpu = version_of(row), card(row)
    if found is None:
        return "its version of liger-kernel is not stated"
    if not OLDEST <= found <= NEWEST:
        return f"its version of liger-kernel was not read ({'.'.join(map(str, found))})"
    if kind not in KINDS:
        return f"what Liger's kernels replace of {kind} is not written down here"
    if gpu is None or gpu.name not in MULTIPROCESSORS:
        return f"how many multiprocessors its card has is not known here ({row['gpu']})"
    if row["parallel"] not in ("none", "DDP") or row["torch_compile"]:
        return "Liger's kernels are traced on whole weights that are not compiled"
    return None


@contextmanager
def kernels(row: Row, model: Any) -> Iterator[None]:
    """Put Liger's norms, MLPs, loss and rotary embedding in the place of a model's.

    Args:
        row: names card and version.
        model: for causal language modeling, of one of `KINDS`; with adapters or without.
    """
    found, gpu = version_of(row), card(row)
    assert found is not None
    assert gpu is not None
    base = getattr(model, "get_base_model", lambda: model)()
    for module in base.modules():
        if type(module).__name__.endswith("RMSNorm"):
            vars(module)["processors"] = MULTIPROCESSORS[gpu.name]
            module.forward = MethodType(norm, module)
        elif type(module).__name__.endswith("MLP"):
            module.forward = MethodType(_joined_mlp if hasattr(module, "gate_up_proj") else _mlp, module)
    vars(base)["liger"] = found, found >= ADDED_IN_FP32 and gpu.capability >= (8, 0)
    base.forward = MethodType(_with_loss, base)
    with mock.patch.object(sys.modules[type(base).__module__], "apply_rotary_pos_emb", rotary):
        yield


def norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return normed hidden states [B, T, D], in their own type, whatever the weight's (transformers/rms_norm.py)."""
    out: torch.Tensor = Norm.apply(hidden, module.weight, module.processors)
    return out


def _mlp(module: Any, hidden: torch.Tensor) -> Any:
    return module.down_proj(Gate.apply(module.gate_proj(hidden), module.up_proj(hidden)))


def _joined_mlp(module: Any, hidden: torch.Tensor) -> Any:
    return module.down_proj(Gate.apply(*module.gate_up_proj(hidden).chunk(2, dim=-1)))


def rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query and key [B, H, T, D], rotated in the memory of those that were given (transformers/rope.py)."""
    turned: tuple[torch.Tensor, torch.Tensor] = Rotary.apply(query, key, cos, sin)
    return turned


def _with_loss(model: Any, input_ids: torch.Tensor, labels: torch.Tensor, **settings: Any) -> Any:
    """Run a model and its loss, without logits (transformers/model/llama.py, lce_forward)."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    version, adds_in_fp32 = model.liger
    hidden = model.model(input_ids=input_ids, **settings)[0]
    if version < UNSHIFTED:
        hidden, labels = hidden[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
    else:
        labels = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
    rows, targets = hidden.view(-1, hidden.shape[-1]), labels.view(-1)
    return CausalLMOutputWithPast(loss=LinearLoss.apply(rows, model.lm_head.weight, targets, version, adds_in_fp32))


class Norm(torch.autograd.Function):
    """RMS norm (ops/rms_norm.py): keeps its input and a number for each token, and makes its gradient in place."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, processors: int) -> torch.Tensor:
        """Return [..., D] for [..., D]."""
        hidden = hidden.contiguous()
        rows = hidden.view(-1, hidden.shape[-1])
        out = torch.empty_like(rows)
        scale = torch.empty(rows.shape[0], dtype=torch.float32)
        out.copy_(rows)
        ctx.processors = processors
        ctx.save_for_backward(rows, weight, scale)
        return out.view(hidden.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Return the gradient of the input, in the memory of the output's, and that of the weight."""
        rows, weight, _ = ctx.saved_tensors
        grad = grad.contiguous()
        parts = torch.empty(ctx.processors, rows.shape[1], dtype=torch.float32)
        grad.view(rows.shape).mul_(rows)
        return grad, parts.sum(dim=0).to(weight.dtype), None


class Gate(torch.autograd.Function):
    """SwiGLU and GeGLU (ops/swiglu.py, ops/geglu.py): keep both inputs, and write the gradients over them."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return [..., F] for twice [..., F]."""
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        torch.mul(gate, up, out=out)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Return the gradients in the memory of what was kept."""
        gate, up = (one.detach() for one in ctx.saved_tensors)
        grad = grad.contiguous()
        return gate.mul_(grad), up.mul_(grad)


class Rotary(torch.autograd.Function):
    """Rotary embedding (ops/rope.py): query and key turn in place, as they lie in memory, and so do their gradients."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        """Return query and key [B, H, T, D]."""
        ctx.save_for_backward(cos.contiguous(), sin.contiguous())
        return _turned(query), _turned(key)

    @staticmethod
    def backward(_: Any, query_grad: torch.Tensor, key_grad: torch.Tensor) -> Any:
        """Return their gradients."""
        return _turned(query_grad), _turned(key_grad), None, None


def _turned(heads: torch.Tensor) -> torch.Tensor:
    rows = heads.detach().transpose(1, 2).contiguous()  # nothing is copied of what a projection made
    return rows.mul_(1.0).transpose(1, 2)


class LinearLoss(torch.autograd.Function):
    """The head's product and cross-entropy, chunk by chunk, with all gradients (ops/fused_linear_cross_entropy.py).

    Names live as long as they do there: the logits of a chunk until those of the next one are there.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, version: Version, adds_in_fp32: bool
    ) -> torch.Tensor:
        """Return the loss of hidden states [N, D], a weight [V, D] and targets [N]."""
        dtype, count = hidden.dtype, hidden.shape[0]
        chunk = _chunk(count, hidden.shape[1], weight.shape[0])
        grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
        grad_input = torch.zeros_like(hidden)
        losses = torch.zeros(count, dtype=torch.float32)
        counted = target != -100
        total = counted.sum()
        for start in range(0, count, chunk):
            part = hidden[start : start + chunk]
            logits = part @ weight.t()
            if version < IN_HALF:
                logits = logits.float()
            logits = logits.contiguous().mul_(1.0)
            if version < IN_HALF:
                logits = logits.to(dtype)
            grad_logits = logits * total if version < UNSCALED else logits
            grad_input[start : start + chunk] = grad_logits @ weight
            if grad_weight is None:
                continue
            if version < SUMMED_IN_FP32:
                torch.addmm(grad_weight, logits.t().to(part.dtype), part, out=grad_weight)
            elif adds_in_fp32 and grad_weight.dtype == torch.float32 and logits.dtype != torch.float32:
                part = part.to(logits.dtype)
                torch.addmm(grad_weight, logits.t(), part, out_dtype=torch.float32, out=grad_weight)
            else:
                grad_weight += torch.mm(grad_logits.t(), part).float()
        loss = losses.sum()
        ctx.save_for_backward(grad_input.detach(), None if grad_weight is None else grad_weight.detach())
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Return the gradients, multiplied in place."""
        grad_input, grad_weight = ctx.saved_tensors
        for one in (grad_input, grad_weight):
            if one is not None:
                one.mul_(grad)
        return grad_input, grad_weight, None, None, None


def _chunk(count: int, width: int, words: int) -> int:
    """Return the tokens of a chunk: as many as have logits of the size of all hidden states, up to a power of two."""
    tokens = -(-count // -(-words // width))
    return 1 << (tokens - 1).bit_length()
