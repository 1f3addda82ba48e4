"""Names of torch and DeepSpeed that are not public, or that DeepSpeed replaces for the whole process.

Each is a function that says in which version and file it was read; `tests/contracts/test_foreign.py` asks the installed
libraries for each, so that an upgrade names what has gone. What is forgotten of a step that is undone has a file of its
own, `undone_step.py`.
"""

import importlib
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any, cast

import torch
from torch import distributed, nn

from ftkit.models.foreign import patched
from ftkit.models.partitions import whole_shape
from ftkit.records.figures import Kind


class DeepSpeedSays(StrEnum):
    """Words by which an error of DeepSpeed is told from others of its class (deepspeed 0.19)."""

    NO_SUCH_PRECISION = "not supported on your device"
    """runtime/engine.py, _do_sanity_check."""
    NO_COMPILER = "Unable to JIT load"
    """ops/op_builder/builder.py, jit_load."""


# --- torch ------------------------------------------------------------------------------------------------------------


def own_parameters(module: nn.Module) -> MutableMapping[str, nn.Parameter | None]:
    """Return a module's parameters, not those of modules in it: `_parameters` (torch 2.13, nn/modules/module.py)."""
    return module._parameters


def watch_parameters(module: nn.Module, parameters: dict[str, nn.Parameter | None]) -> None:
    """Put another dictionary in the place of a module's own parameters: `_parameters` (nn/modules/module.py)."""
    module._parameters = parameters


def own_buffers(module: nn.Module) -> MutableMapping[str, torch.Tensor | None]:
    """Return a module's buffers, not those of modules in it: `_buffers` (torch 2.13, nn/modules/module.py)."""
    return module._buffers


def keeping_linear() -> AbstractContextManager[None]:
    """Put torch's linear layer back, which DeepSpeed replaces (deepspeed 0.19, runtime/zero/partition_parameters.py).

    Why is said in `ftkit/engine/released_weights.py`.
    """
    return patched(nn.functional, "linear", nn.functional.linear)


# --- DeepSpeed: its optimizers ----------------------------------------------------------------------------------------

FLAT_MASTERS = {
    "single_partition_of_fp32_groups": "runtime/zero/stage_1_and_2.py",
    "fp32_groups_flat_partition": "runtime/bf16_optimizer.py",
    "fp32_partitioned_groups_flat": "runtime/zero/stage3.py",
}
"""How each optimizer calls this rank's flat fp32 masters (deepspeed 0.19)."""
_HELD = {"grad": Kind.GRADIENT, "ipg_bucket": Kind.BUFFER, "fp32": Kind.OPTIMIZER}
"""A word in the name of an attribute of DeepSpeed's optimizers, to what its tensors are; the first that fits."""


def flat_masters(optimizer: Any) -> list[torch.Tensor]:
    """Return this rank's flat fp32 masters, whatever the stage calls them."""
    return cast(
        list[torch.Tensor], next(getattr(optimizer, name) for name in FLAT_MASTERS if getattr(optimizer, name, None))
    )


def link_moments(optimizer: Any) -> None:
    """Tell each weight where its moments are; by itself DeepSpeed does so before its last group has any.

    `_lazy_init_hp_params_optimizer_state` (deepspeed 0.19, runtime/zero/stage_1_and_2.py, runtime/bf16_optimizer.py).
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def held_tensors(optimizer: Any) -> Iterator[tuple[Kind, torch.Tensor]]:
    """Yield what an optimizer of DeepSpeed holds between two steps, each with the part of a breakdown that it is."""
    for name, value in vars(optimizer).items():
        kind = next((kind for word, kind in _HELD.items() if word in name), None)
        if kind is not None:
            yield from ((kind, tensor) for tensor in _tensors(value))
    for state in optimizer.optimizer.state.values():
        yield from ((Kind.OPTIMIZER, tensor) for tensor in _tensors(state))


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested containers, and in DeepSpeed's own records of buckets (IPGBucket, IPGBucketZ3)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)
    elif type(value).__name__.startswith("IPGBucket"):
        yield from _tensors(list(vars(value).values()))


def counts_steps_in_python(optimizer: Any) -> bool:
    """Return whether an Adam keeps its number of steps as a number (deepspeed 0.19, ops/adam/cpu_adam.py)."""
    return "CPUAdam" in type(optimizer).__name__


def set_loss_scale(optimizer: Any, scale: float, num_clean_steps: int) -> None:
    """Set the loss scale, and how many steps it has held (deepspeed 0.19, runtime/fp16/loss_scaler.py).

    `cur_scale` doubles when the steps since gradients overflowed, `cur_iter - last_overflow_iter - 1`, fill a window.
    """
    scaler = optimizer.loss_scaler
    scaler.cur_scale = scale
    if hasattr(scaler, "cur_iter"):
        scaler.last_overflow_iter = scaler.cur_iter - num_clean_steps - 1


def num_clean_steps(optimizer: Any) -> int:
    """Return the steps since gradients overflowed; see `set_loss_scale`. A fixed scale counts none."""
    scaler = optimizer.loss_scaler
    return int(scaler.cur_iter - scaler.last_overflow_iter - 1) if hasattr(scaler, "cur_iter") else 0


# --- DeepSpeed: weights that ZeRO-3 has partitioned (0.19, runtime/zero/partition_parameters.py) ----------------------


def is_partitioned(tensor: torch.Tensor) -> bool:
    """Return whether ZeRO-3 has a weight in its care."""
    return hasattr(tensor, "ds_id")


def finish_gathers(optimizer: Any) -> None:
    """Wait for weights that a forward began to gather ahead, and release them (0.19, the coordinator of ZeRO-3).

    DeepSpeed does so as the next forward begins. An evaluation that ends with another order of modules than the steps
    before it leaves some in flight, and such a weight can be neither gathered nor released by name.
    """
    optimizer.parameter_offload.get_param_coordinator()._clean_inflight_param_registry()


def own_part(parameter: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a partitioned weight, or a whole weight itself."""
    part: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return part


def part_numel(parameter: torch.Tensor) -> int:
    """Return the elements of a part, the same on each rank, padding included."""
    return int(cast(Any, parameter).ds_tensor.ds_numel)


def as_whole(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Return a copy of a gathered value, in host memory and in the shape of its weight."""
    return value.detach().view(whole_shape(parameter)).to("cpu", copy=True)


# --- DeepSpeed: processes ---------------------------------------------------------------------------------------------


def communication(deepspeed: Any) -> Any:
    """Return the backend through which all of DeepSpeed communicates: `cdb` (deepspeed 0.19, comm/comm.py)."""
    return deepspeed.comm.comm.cdb


def forget_ended_groups(deepspeed: Any) -> None:
    """Let a second run in one process start anew: DeepSpeed remembers its first process group for ever.

    `_WORLD_GROUP` and `cdb` (deepspeed 0.19, utils/groups.py and comm/comm.py).
    """
    groups = deepspeed.utils.groups
    try:
        if groups._WORLD_GROUP is not None:
            distributed.get_rank(groups._WORLD_GROUP)
    except ValueError:  # a group that has been destroyed
        groups._WORLD_GROUP = deepspeed.comm.comm.cdb = None


def without_inference_messages() -> AbstractContextManager[None]:
    """Leave out DeepSpeed's all-reduce for inference on CPUs: `build_shm_op` (deepspeed 0.19, comm/torch.py).

    Training never calls it. Yet it would be compiled at the first start, even for one rank, which takes 20 seconds and
    a compiler, and map 66 MiB for each rank under a name in /dev/shm that it leaves there for ever.
    """
    backend = importlib.import_module("deepspeed.comm.torch")  # torch itself has taken the attribute of that name
    return patched(backend, "build_shm_op", lambda: None)
