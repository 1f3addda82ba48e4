"""The guide "Performance and Scalability" of transformers, January 2022: the Trainer of 4.16 on torch 1.10 and a V100.

Source: huggingface/transformers, docs/source/performance.mdx; transformers 4.16.2, trainer.py and optimization.py. What
torch 1.10 did otherwise than the torch that traces: gradients are made zero and kept (zero_grad), cuBLAS has its own
workspace outside of torch's allocator, and softmax keeps its input beside its result for the backward
(derivatives.yaml of 1.10: `_softmax_backward_data(grad, result, dim, self)`, where 1.11 has `self.scalar_type()`).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils import checkpoint

from benchmarks.rows import Row, card, num_micro_batches
from benchmarks.stacks import autocast, facts, hf, packed, traced
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Tape

GROUPS = ("transformers/performance.mdx",)
REQUIREMENTS = (
    "transformers==4.16.2",
    "bitsandbytes==0.31.8",  # the oldest on the index; the guide had 0.26, whose state is the same
    "huggingface_hub==0.4.0",
    "sacremoses==0.0.53",
)
HIDDEN = ("tokenizers",)
"""Transformers 4.16 refuses tokenizers of today, and does without."""


FACTS = facts.PLAIN | {
    "method": "full",
    "lora_r": "None",
    "lora_target_modules": "None",
    "trainable_notes": "all; 2 labels",
    "base_dtype": "float32",
    "quant": "None",
    "compute_dtype": r"fp32|fp16 autocast \+ GradScaler",
    "optimizer": "adamw_hf|adafactor|bitsandbytes Adam8bit",
    "optimizer_bits": "8|32",
    "grad_accum": r"\d+",
    "seq_kind": "fixed 512 random tokens",
    "grad_checkpointing": "True|False",
    "attn_impl": "eager",
    "loss_head": r"sequence classification \(no LM head\)",
    "framework": "transformers Trainer",
}


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    return facts.reason_unknown(row, FACTS) or hf.reason_unstated(row)


def trace_row(row: Row) -> Tape:
    """Trace two steps."""
    model = hf.build(row, torch.float32, None)
    if row["grad_checkpointing"]:
        model.gradient_checkpointing_enable()
    with ExitStack() as stack:
        for context in (
            traced.computing(),
            autocast.cuda_lists(),
            _torch_1_10(),
            recording := traced.recorder(card(row)),
        ):
            stack.enter_context(context)
        traced.fake(model)
        traced.see(recording, row, model, workspaces=False)
        with _optimizer(row, model) as optimizer:
            _steps(row, model, optimizer, recording)
    return recording.tape


def _steps(row: Row, model: Any, optimizer: Any, recorder: Recorder) -> None:
    is_half = "fp16" in row["compute_dtype"]
    accumulated = num_micro_batches(row)
    scale = torch.ones(()) if is_half else None

    def loss_of() -> torch.Tensor:
        ids = traced.token_ids(recorder, row)
        labels = torch.zeros(row["micro_batch"], dtype=torch.int64)
        with torch.autocast("cpu", torch.float16) if is_half else nullcontext():
            loss = model(input_ids=ids, labels=labels).loss
        return loss / accumulated if accumulated > 1 else loss

    def backward(loss: torch.Tensor) -> None:
        (loss if scale is None else loss * scale).backward()

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
        optimizer.step()
        model.zero_grad(set_to_none=False)

    traced.two_steps(recorder, loss_of, update, micro_batches=accumulated, backward=backward)


class _Softmax(torch.autograd.Function):
    """Softmax as torch had it before 1.11."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Keep input and result."""
        out: torch.Tensor = torch.ops.aten._softmax(x, dim, x.dtype == torch.float16)
        ctx.save_for_backward(x, out)
        ctx.dim = dim
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Read the type of the input alone."""
        x, out = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(grad, out, ctx.dim, x.dtype), None


def _softmax(x: torch.Tensor, dim: int, **_: Any) -> torch.Tensor:
    out: torch.Tensor = _Softmax.apply(x, dim)
    return out


@contextmanager
def _torch_1_10() -> Iterator[None]:
    """Checkpoint in the way that was the only one; let softmax keep its input."""
    with traced.patched(
        mock.patch.object(checkpoint, "checkpoint", partial(checkpoint.checkpoint, use_reentrant=True)),
        mock.patch.object(nn.functional, "softmax", _softmax),
    ):
        yield


@contextmanager
def _optimizer(row: Row, model: nn.Module) -> Iterator[Any]:
    """Make a row's optimizer, as the Trainer groups parameters."""
    from transformers import optimization

    plain = [parameter for name, parameter in model.named_parameters() if "bias" in name or "LayerNorm" in name]
    known = {id(parameter) for parameter in plain}
    decayed = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": decayed, "weight_decay": 0.0}, {"params": plain, "weight_decay": 0.0}]
    if row["optimizer"] == "adafactor":
        # Its sizes of steps are read from the tensors; none is read here.
        kinds: dict[str, Any] = {"scale_parameter": False, "relative_step": False}
        yield optimization.Adafactor(groups, lr=5e-5, **kinds)
    elif "8bit" in row["optimizer"]:
        with _without_kernels() as kind:
            yield kind(groups, lr=5e-5)
    else:
        yield optimization.AdamW(groups, lr=5e-5)


@contextmanager
def _without_kernels() -> Iterator[Callable[..., Any]]:
    """Import bitsandbytes' Adam, whose kernels work in place and take nothing."""
    # As soon as it is imported it loads its native library, and asks the card, a V100, what it can.
    library: Any = ModuleType("bitsandbytes.cextension")
    library.COMPILED_WITH_CUDA, library.lib = True, mock.MagicMock()
    sys.modules[library.__name__] = library  # for as long as this process lives: whoever imports it later finds it too
    with mock.patch.object(torch.cuda, "get_device_capability", return_value=(7, 0)):
        from bitsandbytes import functional
        from bitsandbytes.optim.adam import Adam8bit

    def table(**_: Any) -> torch.Tensor:
        return torch.empty(256)

    with packed.no_updates(), mock.patch.object(functional, "create_dynamic_map", table):
        yield Adam8bit
