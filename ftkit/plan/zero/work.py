"""The work of DeepSpeed in a step beside what the plain engine computes: copies of gradients, and hooks in Python.

It is written on the rank's tape as operators, so that seconds are taken of it as of any other; what its Python costs is
told in hooks, each as long as one of ours takes on this machine (`plan/seconds/hooks.py`). Read in deepspeed 0.19, and
seen in steps of MiniLM, LoRA and full, in bf16 with one rank of one core, in which one of ours took 46 microseconds:

    ours        theirs                                                                              runtime/zero/
    bucket      reduce_independent_p_g_buckets_and_remove_grads, average_tensor,                    stage_1_and_2.py
                allreduce_and_copy_with_multiple_ranks
    scatter     __add_grad_to_ipg_bucket, __avg_scatter_grads, partition_grads                      stage3.py
    gathered    all_gather_coalesced, AllGatherCoalescedHandle.wait               partition_parameters.py
    update      step, scaled_global_norm, has_overflow                                              both
    sum         update_hp_grads, allreduce_bucket, clip_tensors_by_global_norm, clear_hp_grads      ../bf16_optimizer.py
    visit       pre_sub_module_forward_function and the like, fetch_sub_module, release_sub_module  parameter_offload.py

What the plain engine does as well is not told twice: it casts gradients of half precision, adds later micro-batches to
the sums of the first, clips, and updates, of which a rank of several does its part.
"""

import itertools
from collections import Counter

from ftkit.plan.seconds.hooks import HOOKS
from ftkit.plan.zero.heap import FP32, FP64, Heap
from ftkit.plan.zero.partition import Partition

_DTYPES = {2: "bfloat16", FP32: "float32", FP64: "float64"}
"""Of elements by their bytes, on a CPU, which trains in no fp16."""
_PER_GRADIENT, _PER_UPDATED = 1, 1
"""A tensor's hook, with the views and checks of its place in the bucket: 35 to 50 microseconds beside its copies; and
its norm where sums are whole, 40."""
_PER_FORWARD, _PER_BACKWARD = 6, 4
"""A module's fetch and release: 250 to 330 microseconds in the forward, where identities are hung around it, and 135 to
210 in the backward, whether or not it has weights."""

_PER_GATHER = 4
"""A message that brings weights from other ranks, with the views of what it brings: 210 microseconds beside its copies,
where one of ours took 50 (two ranks, LoRA)."""


class Work:
    """Writes on the tape of a rank what its stage computes, on a CPU; a GPU hides such work behind its own."""

    def __init__(self, partition: Partition, heap: Heap) -> None:
        """Start with nothing.

        Args:
            partition: of the run.
            heap: whose tape gets it.
        """
        self._heap, self._ranks, self._is_told = heap, partition.ranks, partition.device_type == "cpu"
        self._whole, self._part = partition.trained, partition.trained_part
        self._half, self._is_mixed, self._stage = partition.itemsize, partition.is_mixed, partition.stage
        self._tensors = Counter(itertools.chain.from_iterable(partition.groups))

    def bucket(self, *, is_first: bool) -> None:
        """Average the gradients of a backward at stages 1 and 2: into the bucket, flat, back to where they are kept.

        Args:
            is_first: the first backward of a step; what later ones add to the sums, the plain engine adds too.
        """
        size = self._half
        self._copy(self._whole, size, size, is_by_tensor=True)
        self._tell("cat", 2 * size * self._whole, size)
        self._tell("div_", 2 * size * self._whole, size)
        self._copy(self._part, FP32, size, is_by_tensor=True)
        if not self._is_mixed:
            self._copy(self._part, FP32, FP32, is_by_tensor=True)
        else:
            self._copy(self._whole, FP32, size)  # what was sent in fp32 comes back into the flat copy
            self._tell("add_", is_first * 3 * FP32 * self._part, is_by_tensor=True)
        self._python(_PER_GRADIENT * self._tensors.total())

    def scatter(self) -> None:
        """Average them at stage 3: in the order of their owners, to the parts of each rank."""
        # Where the plain engine casts, it moves a part of that already.
        self._tell("copy_", (FP32 if self._is_mixed else 3 * FP32) * self._whole, is_by_tensor=True)
        self._tell("cat", 2 * FP32 * self._whole)
        self._tell("div_", 2 * FP32 * self._whole)
        if self._ranks == 1:  # gloo scatters a copy; of several ranks it is in the time of the message
            self._tell("_reduce_scatter_base_", 3 * FP32 * self._whole)
        self._copy(self._part, FP32, FP32)
        self._python(_PER_GRADIENT * self._tensors.total())

    def gather(self) -> None:
        """Ask the other ranks for weights at stage 3."""
        self._python(_PER_GATHER)

    def gathered(self, num_bytes: int) -> None:
        """Copy weights at stage 3 into the flat storage that is sent, or out of it."""
        self._tell("cat", 2 * num_bytes)

    def sum(self, *, is_first: bool) -> None:
        """Add the gradients of a backward to the sums of BF16_Optimizer, which are zero before the first.

        Args:
            is_first: the first backward of a step; what later ones add, the plain engine adds too.
        """
        self._tell("add_", is_first * 3 * FP32 * self._whole)

    def update_of_whole_sums(self) -> None:
        """Average the sums, which each rank has whole, take their norm, clip them, update this rank's part of masters.

        What an update does is told here, and so is what the last backward does, which no other backward repeats.
        """
        if not self._is_told:
            return
        self._heap.share_update(self._ranks)
        self._tell("cat", 2 * FP32 * self._whole)
        if self._ranks > 1:
            self._tell("mul_", 2 * FP32 * self._whole)
        self._copy(self._whole, FP32, FP32)
        others = self._whole - self._part
        self._tell("linalg_vector_norm", FP32 * others)
        self._tell("mul_", 2 * FP32 * others)
        for _ in range(2):  # by the optimizer as its step ends, and by the engine
            self._tell("zero_", 2 * FP32 * self._whole)
        self._python(_PER_UPDATED * self._tensors.total())

    def update(self) -> None:
        """Update this rank's part; the norm is taken in fp64, and fp32 gradients are made flat."""
        if not self._is_told:
            return
        self._heap.share_update(self._ranks, has_norm=False)
        self._tell("_to_copy", (FP32 + FP64) * self._part, is_by_tensor=True)
        self._tell("linalg_vector_norm", FP64 * self._part, FP64, is_by_tensor=True)
        if self._is_mixed and self._stage < 3:
            self._tell("zeros", FP32 * self._part)
            self._tell("amax", FP32 * self._part, is_by_tensor=True)  # whether a sum is finite
            self._tell("amin", FP32 * self._part, is_by_tensor=True)
        else:
            self._tell("cat", 2 * FP32 * self._part)
        if not self._is_mixed:
            self._copy(self._part, FP32, FP32)  # a master is no weight here

    def visit(self, *, is_forward: bool) -> None:
        """Fetch the weights of a module at stage 3, and release them."""
        self._python(_PER_FORWARD if is_forward else _PER_BACKWARD)

    def _copy(self, elements: int, source: int, target: int, *, is_by_tensor: bool = False) -> None:
        """Copy elements of so many bytes into others; what a copy returns is counted as what any operator makes."""
        self._tell("copy_", (source + 2 * target) * elements, target, is_by_tensor=is_by_tensor)

    def _tell(self, name: str, moved: int, size: int = FP32, *, is_by_tensor: bool = False) -> None:
        """Add an operator that moves so many bytes in all, of elements of a size, at once or tensor by tensor."""
        if not self._is_told:
            return
        for elements, times in (self._tensors if is_by_tensor else Counter([self._whole])).items():
            self._heap.computes((name, 0, moved * elements // self._whole, _DTYPES[size]), times)

    def _python(self, hooks: int) -> None:
        if self._is_told:
            self._heap.computes((HOOKS, 0, 0, ""), hooks)
