"""What the stacks share: a model without values, two recorded steps, and the metric of a row read off a tape."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import optimizer as torch_optimizer
from torch.utils import _foreach_utils

from benchmarks.rows import Row
from benchmarks.rows import card as card_of
from ftkit.machine.contexts import OLDER_BYTES
from ftkit.machine.hardware import Gpu
from ftkit.machine.memory import quiet_collector
from ftkit.models import bnb
from ftkit.observe.allocator import replay
from ftkit.observe.peaks import allocator_events
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role, Tape
from ftkit.plan.tracing import cuda
from ftkit.plan.tracing.fake import materialize
from ftkit.plan.tracing.foreign import unpacked_batches
from ftkit.plan.tracing.trace import fake_tensors, workspaces
from ftkit.step.observer import Phase

Event = tuple[int, int] | tuple[int, int, int]
"""As `allocator.replay` takes them; the stream where there are several."""
Found = Tape | list[tuple[int, int, int]]
"""What tracing a row leaves: a tape, or its births and deaths where streams delay these."""
NCCL_BYTES = 544 * 2**20
"""What a communicator of two GPUs takes beside torch's allocator (measured in NVIDIA/nccl issue 964)."""


@contextmanager
def computing(gpu: Gpu | None = None) -> Iterator[None]:
    """Compute without values, as CUDA would.

    Args:
        gpu: whose attention kernels are taken; None: one that has them all.
    """
    gc.collect()
    with (
        quiet_collector(),
        fake_tensors().mode,
        unpacked_batches(),
        cuda.cuda_semantics(gpu),
        foreach_by_default(),
    ):
        yield


def recorder(gpu: Gpu | None = None) -> Recorder:
    """Return a recorder of what CUDA would make.

    Args:
        gpu: whose blocks of threads share a sum; None: a recent one.
    """
    return Recorder(cuda.storage_size, lambda op, args: cuda.scratch_size(op, args, gpu))


@contextmanager
def recording(gpu: Gpu | None = None) -> Iterator[Recorder]:
    """Compute without values, as CUDA would, under a recorder from the beginning."""
    with computing(gpu), recorder(gpu) as one:
        yield one


@contextmanager
def foreach_by_default() -> Iterator[None]:
    """Let torch's optimizers and its clipping take lists of tensors at once, their default on CUDA."""
    kinds = [*_foreach_utils._foreach_supported_types, FakeTensor]
    with patched(
        mock.patch.object(torch_optimizer, "_get_foreach_kernels_supported_devices", return_value=["cpu"]),
        mock.patch.object(torch_optimizer, "_foreach_supported_types", kinds),
        mock.patch.object(_foreach_utils, "_foreach_supported_types", kinds),
    ):
        yield


def fake(model: nn.Module) -> None:
    """Put fake tensors in the place of those on `meta`; inside `computing`."""
    materialize(model, nullcontext(), torch.device("cpu"))


def hidden(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the constants of a model's 4-bit weights, which are neither parameters nor buffers.

    They are asked of the layers: `bnb.hidden_tensors` asks the weights, which FSDP has made parts of flat ones.
    """
    states = [module.quant_state for module in model.modules() if getattr(module, "quant_state", None) is not None]
    return [(name, tensor) for state in states for name, tensor in bnb.state_tensors(state).items()]


def see(recorder: Recorder, row: Row, model: nn.Module, *, workspaces: bool = True) -> None:
    """Write a model's tensors on the tape, and end the phase of loading.

    Args:
        recorder: watches.
        row: names the card.
        model: of fake tensors.
        workspaces: write those of cuBLAS too, which torch allocates since 1.11.
    """
    if workspaces:
        see_workspaces(recorder, row)
    recorder.see(model.named_parameters(), Role.PARAMETER)
    recorder.see(hidden(model), Role.PARAMETER)
    recorder.see(model.named_buffers(), Role.BUFFER)
    recorder.mark(Phase.LOAD)


def see_workspaces(recorder: Recorder, row: Row | None = None) -> None:
    """Write cuBLAS's workspaces on the tape; they live as long as the process.

    Args:
        recorder: watches.
        row: names the card, whose architecture decides their size; None: not a Hopper.
    """
    spaces = vars(recorder)["workspaces"] = workspaces(None if row is None else card_of(row))
    recorder.see(spaces, Role.BUFFER)


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
        recorder.begin_step(step)
        for _ in range(micro_batches):
            with recorder.during(Phase.FORWARD):
                loss = loss_of()
            with recorder.during(Phase.BACKWARD):
                backward(loss)
                del loss
        with recorder.during(Phase.OPTIMIZER):
            update()


def token_ids(recorder: Recorder, row: Row) -> torch.Tensor:
    """Return a batch of tokens of a row's shape, written on the tape."""
    ids = torch.ones(row["micro_batch"], row["seq_len"], dtype=torch.int64)
    recorder.see([("ids", ids)], Role.INPUT)
    return ids


def events_of(found: Found) -> Sequence[Event]:
    """Return what the model of the allocator reads."""
    return allocator_events(found) if isinstance(found, Tape) else found


def figure(row: Row, found: Found) -> int:
    """Return the prediction of what a row measured, in bytes.

    Args:
        row: names its metric.
        found: what tracing it left.
    """
    events = events_of(found)
    if row["metric_class"] in ("allocated_peak", "active_peak"):
        return replay(events).peak_active_bytes
    reserved = reserved_peak(row, events)
    context = (row["extra_metrics"] or {}).get("nvml_after_cuda_context_MiB", 0) * 2**20
    return reserved + (context if row["metric_class"] == "nvml_device" else 0)


def reserved_peak(row: Row, events: Sequence[Event]) -> int:
    """Return what the caching allocator reserves at most on a row's card, which makes it give back when it is full."""
    card = card_of(row)
    others = OLDER_BYTES + (NCCL_BYTES if row["n_gpus"] > 1 else 0)
    # A published run did fit: where the model of the allocator runs out of memory, the card's end is what it comes to.
    return replay(events, None if card is None else card.memory_bytes - others).peak_reserved_bytes


@contextmanager
def patched(*patches: Any) -> Iterator[None]:
    """Enter several patches at once."""
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield
