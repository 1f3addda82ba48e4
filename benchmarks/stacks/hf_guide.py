"""The guide "Performance and Scalability" of transformers, January 2022: the Trainer of 4.16 on torch 1.10 and a V100.

Source: huggingface/transformers, docs/source/performance.mdx; transformers 4.16.2, trainer.py and optimization.py. What
torch 1.10 did otherwise than the torch that traces: gradients are made zero and kept (zero_grad), and cuBLAS has its
own workspace outside of torch's allocator.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils import checkpoint

from benchmarks.stacks import Row, autocast, hf, traced
from ftkit.plan.tape import Recorder, Tape

GROUPS = ("transformers/performance.mdx",)
REQUIREMENTS = (
    "transformers==4.16.2",
    "bitsandbytes==0.31.8",  # the oldest on the index; the guide had 0.26, whose state is the same
    "huggingface_hub==0.4.0",
    "sacremoses==0.0.53",
)
HIDDEN = ("tokenizers",)
"""Transformers 4.16 refuses tokenizers of today, and does without."""


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    del row
    return None


def trace_row(row: Row) -> Tape:
    """Trace two steps."""
    model = hf.build(row, torch.float32, None)
    if row["grad_checkpointing"]:
        model.gradient_checkpointing_enable()
    with ExitStack() as stack:
        for context in (traced.computing(), autocast.cuda_lists(), _reentrant(), recording := traced.recorder()):
            stack.enter_context(context)
        traced.fake(model)
        traced.see(recording, model, workspaces=False)
        with _optimizer(row, model) as optimizer:
            _steps(row, model, optimizer, recording)
    return recording.tape


def _steps(row: Row, model: Any, optimizer: Any, recorder: Recorder) -> None:
    is_half = "fp16" in row["compute_dtype"]
    accumulated = row["grad_accum"]
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


@contextmanager
def _reentrant() -> Iterator[None]:
    """Checkpoint in the way that was the only one."""
    with mock.patch.object(checkpoint, "checkpoint", partial(checkpoint.checkpoint, use_reentrant=True)):
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
    from bitsandbytes import functional
    from bitsandbytes.optim.adam import Adam8bit

    def nothing(*_: Any, **__: Any) -> None:
        """Stand in for a kernel; no Mock, which would keep its arguments."""

    def table(**_: Any) -> torch.Tensor:
        return torch.empty(256)

    with traced.patched(
        mock.patch.object(functional, "optimizer_update_8bit_blockwise", nothing),
        mock.patch.object(functional, "optimizer_update_32bit", nothing),
        mock.patch.object(functional, "create_dynamic_map", table),
    ):
        yield Adam8bit
