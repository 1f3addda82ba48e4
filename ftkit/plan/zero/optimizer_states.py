"""The optimizer's part of a rank under ZeRO: masters, moments, and what an update needs for a while."""

import math
from dataclasses import dataclass

from ftkit.observe.tape import Role
from ftkit.plan.zero.heap import FP32, FP64, Heap
from ftkit.plan.zero.partition import Partition


@dataclass
class OptimizerStates:
    """The optimizer's part of a rank, in bytes.

    Attributes:
        heap: takes them.
        masters: held from the start.
        staging: a buffer, held from the start, through which offloaded gradients leave for the host.
        moments: held from the first update on.
        norm: needed for a moment before each update, in fp64 (runtime/zero/utils.py, get_norm_dtype).
        flat: one flat tensor of gradients, held in each update.
    """

    heap: Heap
    masters: int
    moments: int
    norm: int = 0
    flat: int = 0
    staging: int = 0

    def __post_init__(self) -> None:
        """Start before loading."""
        self._has_moments = False
        self._gradients: int | None = None

    def after_load(self) -> None:
        """Make the masters and the buffer."""
        self.heap.born(self.masters, Role.OPTIMIZER)
        self.heap.born(self.staging)

    def before_update(self) -> None:
        """Take the norm, and make gradients flat."""
        self.heap.pass_by(self.norm)
        self._gradients = self.heap.born(self.flat, Role.GRADIENT)

    def end_update(self) -> None:
        """Keep the moments, which the first update makes."""
        if not self._has_moments:
            self.heap.born(self.moments, Role.OPTIMIZER)
            self._has_moments = True
        self.heap.died(self._gradients)


def flat_states(partition: Partition, heap: Heap) -> OptimizerStates:
    """Return what stages 1 and 2 hold of the optimizer (runtime/zero/stage_1_and_2.py).

    Args:
        partition: of the run.
        heap: takes it.
    """
    part = FP32 * partition.trained_part
    largest = partition.sizes.largest_trainable
    if not partition.on_device:
        return OptimizerStates(heap, masters=0, moments=0, staging=partition.itemsize * largest)
    norm = FP64 * min(largest, partition.trained_part)
    # Sums beside half precision are flat from the start; gradients in fp32 are made flat.
    return OptimizerStates(heap, masters=part, moments=2 * part, norm=norm, flat=0 if partition.is_mixed else part)


def partitioned_states(partition: Partition, heap: Heap) -> OptimizerStates:
    """Return what stage 3 holds of the optimizer (runtime/zero/stage3.py).

    Args:
        partition: of the run.
        heap: takes it.
    """
    if not partition.on_device:
        return OptimizerStates(heap, masters=0, moments=0)
    part = FP32 * partition.trained_part
    return OptimizerStates(
        heap,
        # Of weights in fp32 too: to update them where they are, DeepSpeed asks whether their device is its own, and
        # compares a torch.device with a name, which are never equal (_create_fp32_partitions).
        masters=part,
        moments=2 * part,
        norm=FP64 * partition.largest_part,
        flat=FP32 * _largest_group(partition),
    )


def _largest_group(partition: Partition) -> int:
    """Return the elements of a rank's part of the larger parameter group: what decays, or what does not."""
    return math.ceil(max(map(sum, partition.groups)) / partition.ranks)
