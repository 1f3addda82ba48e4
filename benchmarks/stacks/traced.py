"""What the stacks share: a model without values, two recorded steps, and the metric of a row read off a tape."""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import optimizer as torch_optimizer
from torch.utils import _foreach_utils

from benchmarks.stacks import Row
from ftkit.plan import cuda
from ftkit.plan.allocator import replay
from ftkit.plan.tape import BACKWARD, FORWARD, LOAD, OPTIMIZER, Recorder, Tape
from ftkit.plan.timeline import allocator_events


@contextmanager
def recording(*, num_workspaces: int = cuda.NUM_WORKSPACES) -> Iterator[Recorder]:
    """Compute without values as CUDA would, under a Recorder.

    Args:
        num_workspaces: of cuBLAS: one for each pair of a thread and a stream that multiplies.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = Recorder(cuda.storage_size, cuda.scratch_size)
    gc.collect()
    gc.disable()
    try:
        with mode, cuda.unpacked_batches(), cuda.cuda_semantics(), foreach_by_default(), recorder:
            spaces = [torch.empty(cuda.cublas_workspace(None), dtype=torch.uint8) for _ in range(num_workspaces)]
            recorder.see([("workspace", one) for one in spaces], "buffer")
            yield recorder
    finally:
        gc.enable()


@contextmanager
def foreach_by_default() -> Iterator[None]:
    """Let torch's optimizers and its clipping take lists of tensors at once, their default on CUDA."""
    kinds = [torch.Tensor, nn.Parameter, FakeTensor]
    with patched(
        mock.patch.object(torch_optimizer, "_get_foreach_kernels_supported_devices", return_value=["cpu"]),
        mock.patch.object(torch_optimizer, "_foreach_supported_types", kinds),
        mock.patch.object(_foreach_utils, "_foreach_supported_types", kinds),
    ):
        yield


def fake(model: nn.Module) -> None:
    """Put fake tensors in the place of those on `meta`; tied weights stay tied. Inside `recording`."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in list(table.items()):
                if tensor is None or tensor.device.type != "meta":
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                    made[id(tensor)] = (
                        nn.Parameter(empty, tensor.requires_grad) if table is module._parameters else empty
                    )
                table[name] = made[id(tensor)]  # type: ignore[index]  # one of two tables


def see(recorder: Recorder, model: nn.Module) -> None:
    """Write a model's tensors on the tape, and end the phase of loading."""
    recorder.see(model.named_parameters(), "parameter")
    recorder.see(model.named_buffers(), "buffer")
    recorder.mark(LOAD)


def two_steps(
    recorder: Recorder,
    loss_of: Callable[[], torch.Tensor],
    update: Callable[[], Any],
    *,
    micro_batches: int = 1,
    backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward,
) -> None:
    """Run two optimizer steps; the first has no optimizer state yet.

    Args:
        recorder: watches.
        loss_of: makes a batch and returns its loss.
        update: what follows the last backward of a step: clipping, the optimizer, the end of the gradients.
        micro_batches: in each step.
        backward: of a loss.
    """
    for step in (1, 2):
        recorder.step = step
        for _ in range(micro_batches):
            recorder.phase = FORWARD
            loss = loss_of()
            recorder.mark(FORWARD)
            recorder.phase = BACKWARD
            backward(loss)
            del loss
            recorder.mark(BACKWARD)
        recorder.phase = OPTIMIZER
        update()
        recorder.mark(OPTIMIZER)


def token_ids(recorder: Recorder, row: Row) -> torch.Tensor:
    """Return a batch of tokens of a row's shape, written on the tape."""
    ids = torch.ones(row["micro_batch"], row["seq_len"], dtype=torch.int64)
    recorder.see([("ids", ids)], "input")
    return ids


def figure(row: Row, found: Tape | int) -> int:
    """Return the prediction of what a row measured, in bytes.

    Args:
        row: names its metric.
        found: a tape, or the bytes themselves.
    """
    if isinstance(found, int):
        return found
    if row["metric_class"] in ("allocated_peak", "active_peak"):
        return replay(allocator_events(found)).peak_active_bytes
    reserved = replay(allocator_events(found)).peak_reserved_bytes
    context = (row["extra_metrics"] or {}).get("nvml_after_cuda_context_MiB", 0) * 2**20
    return reserved + (context if row["metric_class"] == "nvml_device" else 0)


@contextmanager
def patched(*patches: Any) -> Iterator[None]:
    """Enter several patches at once."""
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield
