"""torch's own fully_shard ("FSDP2") on one rank of many, without the others, without values and without a GPU.

As in fsdp.py its code runs, over a process group that answers without sending anything, and what it asks of the device
is answered as CUDA would. It keeps what other streams use by events and references of its own, so that nothing that is
dead is held back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp._fully_shard import (
    _fsdp_collectives,
    _fsdp_init,
    _fsdp_param,
    _fsdp_param_group,
    _fsdp_state,
)
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import _disable_current_modes

from benchmarks.stacks import absent_ranks, fsdp, traced
from ftkit.observe.recorder import Recorder


@contextmanager
def recording(model: torch.nn.Module, num_ranks: int) -> Iterator[tuple[fsdp.Device, Recorder, DeviceMesh]]:
    """Be the first of `num_ranks` ranks, under a recorder, with a model whose tensors are fake from here on.

    Args:
        model: on `meta`.
        num_ranks: GPUs of the run.
    """
    with rank_of(num_ranks) as (device, mesh), traced.computing():
        traced.fake(model)
        with traced.recorder() as recorder, device.told_to(recorder):
            yield device, recorder, mesh


@contextmanager
def rank_of(num_ranks: int) -> Iterator[tuple[fsdp.Device, DeviceMesh]]:
    """Be the first of `num_ranks` ranks; the others answer without being there.

    Args:
        num_ranks: GPUs of the run.
    """
    device = fsdp.Device()
    with absent_ranks.group_of(num_ranks):
        mesh = init_device_mesh("cpu", (num_ranks,))  # reads its own numbers back: not among tensors without values
        with traced.patched(*_patches(device)):
            yield device, mesh


def _patches(device: fsdp.Device) -> Iterator[Any]:
    """Yield what lets FSDP2 ask `device` and tell it."""
    for module in (_fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state):
        yield mock.patch.object(module, "_get_device_handle", return_value=device)
    for module in (_fsdp_param, _fsdp_param_group):
        yield mock.patch.object(module, "alloc_storage", partial(fsdp.told_after, device, _fsdp_param.alloc_storage))
    yield mock.patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", _unseen)
    yield mock.patch.object(_fsdp_param, "free_storage", partial(fsdp.told_after, device, _fsdp_param.free_storage))


_propagate = ShardingPropagator._propagate_tensor_meta_non_cached


def _unseen(propagator: ShardingPropagator, schema: Any) -> Any:
    """Find the shape of a result, which DTensor does with fake tensors of the whole: no rank holds these."""
    with _disable_current_modes():
        return _propagate(propagator, schema)
