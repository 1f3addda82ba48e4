"""What the ranks of stages 1 and 2 send one another in a step; stage 3 does it where it gathers and where it reduces.

Read in deepspeed 0.19, and seen around the calls of two ranks: gradients go in fp32, weights in the type that they
compute in.

    ours       theirs                                              runtime/
    gradients  buffered_allreduce_fallback; average_tensor         engine.py; zero/stage_1_and_2.py
    weights    all_gather_dp_groups                                utils.py
    numbers    scaled_global_norm, has_overflow                    zero/stage_1_and_2.py, zero/stage3.py
"""

from ftkit.plan.seconds.messages import Collective
from ftkit.plan.zero.heap import FP32, Heap
from ftkit.plan.zero.partition import Partition


def gradients(partition: Partition, heap: Heap) -> None:
    """Sum all gradients over the ranks, one full bucket after another; BF16_Optimizer's lie flat in one."""
    trained = partition.trained
    size = trained if partition.has_bf16_optimizer else min(partition.bucket, trained)
    heap.sends(Collective.SUM, FP32 * size, trained // size)
    heap.sends(Collective.SUM, FP32 * (trained % size))


def weights(partition: Partition, heap: Heap) -> None:
    """Gather the weights that the ranks have updated, each group of parameters at once."""
    for group in partition.groups:
        heap.sends(Collective.GATHER, partition.itemsize * sum(group))


def numbers(partition: Partition, heap: Heap) -> None:
    """Agree on the norm and on whether all sums are finite; BF16_Optimizer has whole sums on each rank."""
    if partition.stage == 3:
        heap.sends(Collective.SUM, FP32 * sum(map(bool, partition.groups)), 2)
    elif not partition.has_bf16_optimizer:
        heap.sends(Collective.SUM, FP32, 3)
