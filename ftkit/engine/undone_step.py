"""Forget what DeepSpeed's optimizers keep of a step that has begun.

They drop gradients by themselves after an update and where fp16 overflows. A step that is undone before its update,
perhaps in the middle of a forward or a backward that ran out of memory, is not foreseen: of these places `zero_grad`
clears the first alone. Names as in DeepSpeed 0.19, runtime/zero/stage_1_and_2.py and stage3.py.

| kept | by stage | forgotten here because |
|---|---|---|
| `grad`, `grad_accum` of a weight | all | the next backward would add to them |
| `averaged_gradients`, `all_grad_tensors` | 1, 2 | so would it to these, which hold what has been reduced |
| the bucket that is being filled | all | a backward that stopped has left gradients in it |
| `micro_step_id` | all | it says whether to overwrite or to add to the sums: of stage 3, and of offloaded ones |
| `params_already_reduced`, the depth of backwards | all | a backward that stopped is taken for one that goes on |
| weights gathered, and the order of modules | 3 | a pass that stopped gives none back, and was recorded half |
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


def forget_step(optimizer: Any, parameters: Iterable[nn.Parameter], *, is_partitioned: bool) -> None:
    """Drop the gradients of a step that is undone, so that the next one starts as after an update.

    Args:
        optimizer: DeepSpeed's, of any stage.
        parameters: those that train.
        is_partitioned: whether the stage is 3, whose ranks do this together.
    """
    clear_pass(optimizer, parameters, is_partitioned=is_partitioned)
    if is_partitioned:
        _forget_order(optimizer)


def clear_pass(optimizer: Any, parameters: Iterable[nn.Parameter], *, is_partitioned: bool) -> None:
    """Drop the gradients and what a pass that stopped has left, on this rank alone.

    Args:
        optimizer: DeepSpeed's, of any stage.
        parameters: those that train.
        is_partitioned: whether the stage is 3.
    """
    for parameter in parameters:
        parameter.grad = None  # before `zero_grad`, which stage 3 has written for CUDA alone
    if is_partitioned:
        _forget_partitioned(optimizer)
    elif hasattr(optimizer, "ipg_buckets"):  # not the optimizer of bf16 in stage 1, whose `zero_grad` clears it all
        _forget_whole(optimizer)
    optimizer.zero_grad(set_to_none=True)
    while optimizer._backward_active_depth:
        optimizer.exit_backward()
    optimizer.clear_backward_seen_flag()


def _forget_whole(optimizer: Any) -> None:
    """Drop what stages 1 and 2 keep beside the weights, as they do themselves where fp16 overflows."""
    optimizer._release_preflattened_grad_buffers()
    for sums in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
        sums.update(dict.fromkeys(sums))
    for bucket in optimizer.ipg_buckets.values():
        bucket.clear()
    optimizer.params_already_reduced = [False] * len(optimizer.params_already_reduced)
    optimizer._clear_previous_reduced_grads()
    optimizer._release_ipg_buffers()
    optimizer.micro_step_id = -1
    if optimizer.cpu_offload:
        optimizer.reset_cpu_buffers()
        optimizer._offload_accumulated_param_ids = set()


def _forget_partitioned(optimizer: Any) -> None:
    """Drop what stage 3 keeps, and give back the weights whose backward has not come to its end."""
    for bucket in optimizer.ipg_buckets.values():
        bucket.clear_params()
    optimizer.params_already_reduced = dict.fromkeys(optimizer.params_already_reduced, False)
    optimizer.averaged_gradients.clear()
    optimizer.grad_partitions_flat_buffer.zero_()
    optimizer.reset_cpu_buffers()
    optimizer._offload_boundary_param_ids = set()
    optimizer.parameter_offload.get_param_coordinator().release_backward_leftovers()


def _forget_order(optimizer: Any) -> None:
    """Give back what a pass has gathered, and have the order of modules recorded anew."""
    coordinator = optimizer.parameter_offload.get_param_coordinator()
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
    optimizer.parameter_offload.partition_all_parameters()
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
