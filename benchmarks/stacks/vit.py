"""rasbt/pytorch-memory-optim: torchvision's vision transformer vit_l_16 over images of CIFAR-10, 224 pixels wide.

Source: 01_pytorch-vit.py to 05_gradient-accum.py, 08_fsdp-with-01-2.py, 09_fsdp-cpu-offload-with-01-2.py. The gradients
of a step are dropped after the forward of the next one, but with accumulation, where they are dropped after the update.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.rows import Row, card, num_micro_batches
from benchmarks.stacks import autocast, fsdp, older_adam, traced
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Tape
from ftkit.step.observer import Phase

CLASSES = 10
PIXELS = 224


def build(dtype: torch.dtype) -> Any:
    """Build the model on `meta`, with a head for ten classes."""
    from torchvision.models import vit_l_16

    with torch.device("meta"):
        model = vit_l_16()
        model.heads.head = nn.Linear(model.hidden_dim, CLASSES)
    return model.to(dtype).train()


@contextmanager
def first_flash_attention() -> Iterator[None]:
    """Let the flash kernel see one row of tokens after the other, and write its result so (torch 2.0, attention.cu).

    The kernel of today takes any strides and gives its result those of the query.
    """
    attend: Any = nn.functional.scaled_dot_product_attention

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **named: Any) -> Any:
        if query.dtype == torch.float32:
            return attend(query, key, value, *args, **named)
        rows = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)]
        return attend(*rows, *args, **named)

    with mock.patch.object(nn.functional, "scaled_dot_product_attention", attention):
        yield


def trace_row(row: Row) -> Tape:
    """Trace two steps on one GPU."""
    model = build(torch.bfloat16 if row["base_dtype"] == "bfloat16" else torch.float32)
    with ExitStack() as stack:
        for context in (traced.computing(), autocast.cuda_lists(), first_flash_attention()):
            stack.enter_context(context)
        recorder = stack.enter_context(traced.recorder(card(row)))
        traced.fake(model)
        traced.see(recorder, row, model)
        Loop(row, model).run(recorder)
    return recorder.tape


def trace_shards(row: Row, shard: Any) -> traced.Found:
    """Trace wrapping and two steps of FSDP."""
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapper
    from torchvision.models.vision_transformer import EncoderBlock

    model = build(torch.float32)
    with fsdp.recording(model, row["n_gpus"]) as (device, recorder):
        sharded = shard(row, model, EncoderBlock)
        wrapper.apply_activation_checkpointing(
            sharded,
            checkpoint_wrapper_fn=wrapper.checkpoint_wrapper,
            check_fn=lambda module: isinstance(module, EncoderBlock),
        )
        traced.see_workspaces(recorder, row)
        recorder.mark(Phase.LOAD)
        Loop(row, sharded, device).run(recorder)
    return device.allocator_events(recorder.tape)


class Loop:
    """The training loop of the scripts."""

    def __init__(self, row: Row, model: Any, device: fsdp.Device | None = None) -> None:
        """Make the optimizer; offloaded, it runs on the host."""
        self._row, self._model, self._device = row, model, device
        self._adam = older_adam.Adam(model.parameters(), lr=5e-5)
        self._features = torch.empty(0)

    def run(self, recorder: Recorder) -> None:
        """Run two steps."""
        traced.two_steps(
            recorder, self._loss, self._update, micro_batches=num_micro_batches(self._row), backward=self._backward
        )

    def _loss(self) -> torch.Tensor:
        # The batch before is there until the name is given to this one.
        self._features = torch.empty(self._row["micro_batch"], 3, PIXELS, PIXELS)
        targets = torch.zeros(self._row["micro_batch"], dtype=torch.int64)
        is_mixed = self._row["compute_dtype"] == "16-mixed"
        with torch.autocast("cpu", torch.float16) if is_mixed else nullcontext():
            logits = self._model(self._features.to(next(self._model.parameters()).dtype))
        loss: torch.Tensor = nn.functional.cross_entropy(logits.float(), targets)
        return loss / num_micro_batches(self._row)

    def _backward(self, loss: torch.Tensor) -> None:
        if num_micro_batches(self._row) == 1:
            self._drop_gradients()
        loss.backward()

    def _update(self) -> None:
        if self._device is not None:
            self._device.synchronize()  # the metric reads its values
        if self._row["offload"] == "none":
            self._adam.step()
        if num_micro_batches(self._row) > 1:
            self._drop_gradients()

    def _drop_gradients(self) -> None:
        self._adam.zero_grad()
