"""The buckets in which ZeRO collects gradients until it averages them over the ranks.

DeepSpeed calls them ipg buckets, for independent parallel gradients (deepspeed 0.19):

    ours                          theirs                                            runtime/zero/
    Stage2Bucket.take             reduce_independent_p_g_buckets_and_remove_grads   stage_1_and_2.py
    Stage2Bucket.end_backward     independent_gradient_partition_epilogue           stage_1_and_2.py
    Stage2Bucket._reduce          reduce_ipg_grads, average_tensor                  stage_1_and_2.py
    Stage3Bucket.take             reduce_independent_p_g_buckets_and_remove_grads   stage3.py
    Stage3Bucket.reduce           __reduce_and_partition_ipg_grads                  stage3.py
"""

from dataclasses import dataclass

from ftkit.observe.tape import Role
from ftkit.plan.seconds.messages import Collective
from ftkit.plan.zero.heap import FP32, FP64, Heap
from ftkit.plan.zero.partition import Partition


class Stage2Bucket:
    """The bucket of stages 1 and 2, and the rank's sums of gradients that it is averaged into."""

    def __init__(self, partition: Partition, heap: Heap) -> None:
        """Start empty.

        Args:
            partition: of the run.
            heap: takes what a reduction needs.
        """
        self._heap, self._capacity, self._trained = heap, partition.bucket, partition.trained
        is_mixed, on_device = partition.is_mixed, partition.on_device
        # A bucket is copied to be sent, and at stage 2 one in half precision is first copied to fp32.
        self._bytes_per_element = FP32 + (partition.itemsize if is_mixed and partition.stage == 2 else 0)
        # Gradients in fp32 that are offloaded have no sums here: they are added up where they go. On the device they
        # are kept whole where the rank owns any part of them (stage_1_and_2.py, copy_grads_in_partition), so a table
        # of embeddings that lies across two parts is kept by both ranks.
        kept = partition.trained_part if is_mixed or partition.stage == 1 else partition.touched
        self._sum_bytes = FP32 * kept if is_mixed or on_device else 0
        self._sums_come_first = is_mixed
        # In fp32 the averages of a later micro-batch are a storage of their own until they are added.
        self._later_bytes = FP32 * kept if not is_mixed and on_device else 0
        self._norm_bytes = 0 if on_device else FP64 * min(partition.sizes.largest_trainable, partition.trained_part)
        self._filled = self._largest = 0
        self._sums: int | None = None

    def take(self, elements: int) -> None:
        """Add a gradient; if there is no room for it, the bucket is reduced first."""
        if self._filled and self._filled + elements > self._capacity:
            self._reduce()
        self._filled += elements
        self._largest = max(self._largest, elements)

    def end_backward(self) -> None:
        """Reduce what is left.

        The plain engine adds the gradients of a later micro-batch to those of the first, so they never come by
        themselves: then a bucket that is as full as it can be is reduced.
        """
        later_bytes = 0
        if not self._filled:
            self._filled = self._largest = min(self._capacity, self._trained)
            later_bytes = 0 if self._sums is None else self._later_bytes
        self._reduce()
        self._heap.pass_by(later_bytes)

    def end_update(self) -> None:
        """Let the sums go."""
        self._heap.died(self._sums)
        self._sums = None

    def _reduce(self) -> None:
        if self._sums_come_first:
            self._hold_sums()
        self._heap.pass_by(self._filled * self._bytes_per_element)
        self._hold_sums()
        self._heap.pass_by(min(self._norm_bytes, FP64 * self._largest))
        self._filled = self._largest = 0

    def _hold_sums(self) -> None:
        if self._sums is None:
            self._sums = self._heap.born(self._sum_bytes, Role.GRADIENT)


@dataclass
class Stage3Bucket:
    """The bucket of stage 3, whose memory is there from the start; its sums are partitions that are there too.

    Attributes:
        heap: takes what a reduction needs.
        ranks: W.
        capacity: elements; reduce_bucket_size.
        num_copies: further storages as large as the bucket that a reduction takes: gloo sums a copy, NCCL does not.
        sums_come: partitions of gradients are in another memory, and come to be added to.
        norms_early: each partition's norm is taken, in fp64, when it has been reduced; else before the update.
    """

    heap: Heap
    ranks: int
    capacity: int
    num_copies: int
    sums_come: bool
    norms_early: bool

    def __post_init__(self) -> None:
        """Start empty."""
        self._gradients: list[int] = []

    def take(self, elements: int) -> None:
        """Add a gradient; if there is no room for it, the bucket is reduced first."""
        if self._gradients and sum(self._gradients) + elements > self.capacity:
            self.reduce()
        self._gradients.append(elements)

    def reduce(self) -> None:
        """Average the bucket, in a copy that is in the order of its owners; one gradient without padding needs none."""
        padded = [-(-elements // self.ranks) * self.ranks for elements in self._gradients]
        is_whole = self._gradients == padded[:1]
        copy = None if is_whole else self.heap.born(FP32 * sum(padded))
        self.heap.pass_by(*[FP32 * sum(padded)] * self.num_copies)
        self.heap.sends(Collective.SCATTER, FP32 * sum(padded))
        largest = max(padded) // self.ranks
        self.heap.pass_by(*[FP32 * largest] * self.sums_come, *[FP64 * largest] * self.norms_early)
        self.heap.died(copy)
        self._gradients.clear()
