"""The stages of ZeRO, each an object that hears of the moments of a step and does with memory what DeepSpeed does.

    ours         theirs (deepspeed 0.19)                          where
    Replicated   none: the plain engine at several ranks          ftkit/engine/plain.py
    Stage1       BF16_Optimizer                                   runtime/bf16_optimizer.py
    Stage1Kept   DeepSpeedZeroOptimizer, partition_grads=False    runtime/zero/stage_1_and_2.py
    Stage2       DeepSpeedZeroOptimizer, partition_grads=True     runtime/zero/stage_1_and_2.py
    Stage3       DeepSpeedZeroOptimizer_Stage3                    runtime/zero/stage3.py

Sizes are those of the last rank: at stages 1 and 2 it owns the weights whose gradients come first, and so has its sums
before the others.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from ftkit.observe.tape import Birth, Role
from ftkit.plan.seconds.messages import Collective
from ftkit.plan.zero import sending
from ftkit.plan.zero.buckets import Stage2Bucket, Stage3Bucket
from ftkit.plan.zero.coordinator import Coordinator, Limits
from ftkit.plan.zero.gather import Gatherer, Module, Parameter
from ftkit.plan.zero.heap import FP32, Heap
from ftkit.plan.zero.module_events import Moment, Visit
from ftkit.plan.zero.optimizer_states import OptimizerStates, flat_states, partitioned_states
from ftkit.plan.zero.partition import WEIGHTS, Partition, elements
from ftkit.plan.zero.rewrite import Fate, Stage
from ftkit.plan.zero.work import Work
from ftkit.records.figures import Kind


def stage_of(partition: Partition) -> Callable[[Partition, Heap], Stage]:
    """Return the stage that DeepSpeed runs; stage 1 has another optimizer for bf16 on the device than for the rest."""
    if partition.stage == 1:
        return Stage1 if partition.has_bf16_optimizer else Stage1Kept
    return {2: Stage2, 3: Stage3}[partition.stage]


class Replicated(Stage):
    """Every rank holds all, and gradients are summed over the ranks in flat buckets before the update."""

    def __init__(self, heap: Heap, buckets: Sequence[int], *, takes_time: bool) -> None:
        """Start before loading.

        Args:
            heap: takes a bucket.
            buckets: elements of each.
            takes_time: whether copying into buckets and back takes time of its own: on a CPU.
        """
        self._heap, self._buckets, self._summed = heap, buckets, sum(buckets) if takes_time else 0

    def before_update(self) -> None:
        """Sum the gradients, bucket by bucket."""
        self._heap.pass_by(FP32 * max(self._buckets, default=0))
        for bucket in self._buckets:
            self._heap.sends(Collective.SUM, FP32 * bucket)
        if self._summed:
            self._heap.computes(("cat", 0, 2 * FP32 * self._summed, "float32"))
            self._heap.computes(("copy_", 0, 3 * FP32 * self._summed, "float32"))


class Stage1(Stage):
    """Masters and moments are partitioned; the sums of gradients are whole, in fp32, and there from the start."""

    def __init__(self, partition: Partition, heap: Heap) -> None:
        """Start before loading."""
        self._heap, self._sums, self._partition = heap, FP32 * partition.trained, partition
        self._states = OptimizerStates(heap, FP32 * partition.trained_part, 2 * FP32 * partition.trained_part)
        self._work, self._is_first = Work(partition, heap), True

    def fate(self, birth: Birth, kind: Kind) -> Fate:  # noqa: ARG002  # as of any stage
        """Keep gradients in half precision until the update."""
        return {Kind.OPTIMIZER: Fate.LEAVES, Kind.GRADIENT: Fate.HALVES}.get(kind, Fate.STAYS)

    def after_load(self) -> None:
        """Make masters and sums."""
        self._states.after_load()
        self._heap.born(self._sums, Role.GRADIENT)

    def end_backward(self, *, is_last: bool) -> None:
        """Add to the sums, and average them over the ranks, in a copy."""
        self._work.sum(is_first=self._is_first)
        self._is_first = is_last
        if is_last:
            self._heap.pass_by(self._sums)

    def end_update(self) -> None:
        """Make the moments."""
        self._work.update_of_whole_sums()
        sending.gradients(self._partition, self._heap)
        sending.weights(self._partition, self._heap)
        self._states.end_update()


class Stage1Kept(Stage):
    """Masters and moments are partitioned; gradients are whole until the last micro-batch, and averaged then."""

    def __init__(self, partition: Partition, heap: Heap) -> None:
        """Start before loading."""
        self._heap, self._partition, self._is_mixed = heap, partition, partition.is_mixed
        self._sizes = _gradient_sizes(partition)
        self._states, self._bucket = flat_states(partition, heap), Stage2Bucket(partition, heap)
        self._work = Work(partition, heap)
        # Gradients of weights in half precision become views of the bucket's memory, which therefore outlives it.
        self._buffer_bytes = FP32 * partition.bucket * partition.num_buckets
        self._buffer: int | None = None

    def fate(self, birth: Birth, kind: Kind) -> Fate:
        """Let gradients wait."""
        if kind is Kind.GRADIENT and birth.size in self._sizes:
            return Fate.WAITS
        return Fate.LEAVES if kind is Kind.OPTIMIZER else Fate.STAYS

    def after_load(self) -> None:
        """Make the masters."""
        self._states.after_load()

    def on_first_gradient(self) -> None:
        """Make the bucket's memory, in the first backward of a step."""
        if self._buffer is None:
            self._buffer = self._heap.born(self._buffer_bytes)

    def end_backward(self, *, is_last: bool) -> None:
        """Average what has waited."""
        if not is_last:
            return
        for size in self._heap.end_gradients():
            self._bucket.take(size)
        self._bucket.end_backward()
        self._work.bucket(is_first=True)
        if not self._is_mixed:
            self._free_buffer()

    def before_update(self) -> None:
        """Take the norm."""
        self._states.before_update()

    def end_update(self) -> None:
        """Make the moments and let the gradients go."""
        self._work.update()
        for send in (sending.gradients, sending.numbers, sending.weights):
            send(self._partition, self._heap)
        self._states.end_update()
        self._bucket.end_update()
        self._free_buffer()

    def _free_buffer(self) -> None:
        self._heap.died(self._buffer)
        self._buffer = None


class Stage2(Stage):
    """Gradients are partitioned too: each goes into a bucket as it comes, and is averaged when that is full."""

    def __init__(self, partition: Partition, heap: Heap) -> None:
        """Start before loading."""
        self._heap, self._partition, self._sizes = heap, partition, _gradient_sizes(partition)
        self._states, self._bucket = flat_states(partition, heap), Stage2Bucket(partition, heap)
        self._work, self._is_first = Work(partition, heap), True
        self._buffer_bytes = partition.itemsize * partition.bucket * partition.num_buckets
        self._buffer: int | None = None

    def fate(self, birth: Birth, kind: Kind) -> Fate:
        """Let gradients go."""
        if kind is Kind.GRADIENT and birth.size in self._sizes:
            return Fate.GOES
        return Fate.LEAVES if kind is Kind.OPTIMIZER else Fate.STAYS

    def after_load(self) -> None:
        """Make the masters."""
        self._states.after_load()

    def on_first_gradient(self) -> None:
        """Make the bucket's memory, again in each backward."""
        self._buffer = self._heap.born(self._buffer_bytes)

    def on_gradient(self, elements: int) -> None:
        """Put a gradient into the bucket."""
        self._bucket.take(elements)

    def end_backward(self, *, is_last: bool) -> None:
        """Average what is in the bucket."""
        self._bucket.end_backward()
        self._work.bucket(is_first=self._is_first)
        sending.gradients(self._partition, self._heap)
        self._is_first = is_last
        self._heap.died(self._buffer)

    def before_update(self) -> None:
        """Take the norm."""
        self._states.before_update()

    def end_update(self) -> None:
        """Make the moments and let the sums of gradients go."""
        self._work.update()
        sending.numbers(self._partition, self._heap)
        sending.weights(self._partition, self._heap)
        self._states.end_update()
        self._bucket.end_update()


class Stage3(Stage):
    """Weights are partitioned too: whole while a module computes, gathered before and released after."""

    def __init__(self, partition: Partition, heap: Heap) -> None:
        """Start before loading."""
        self._heap, self._partition = heap, partition
        on_device = partition.on_device
        self._sums = FP32 * partition.trained_part if on_device else 0
        self._states = partitioned_states(partition, heap)
        self._is_far = partition.device_type != "cpu"  # the device's memory is not the host's
        self._work = Work(partition, heap)
        parts_come = self._is_far and partition.weights_away
        asked, copied = self._work.gather, self._work.gathered
        gatherer = Gatherer(heap, partition.ranks, parts_come=parts_come, asked=asked, copied=copied)
        self._coordinator = Coordinator(_parameters(partition), Limits.of(partition.zero), gatherer)
        self._bucket = Stage3Bucket(
            heap,
            partition.ranks,
            partition.bucket,
            num_copies=0 if self._is_far else 1,
            sums_come=self._is_far and not on_device,
            norms_early=not on_device,
        )
        self._expected = _num_gradients(partition)
        self._num_gradients = 0

    def fate(self, birth: Birth, kind: Kind) -> Fate:
        """Let gradients wait for the moment that puts them into the bucket; weights never come whole to a GPU."""
        if kind is Kind.GRADIENT:
            return Fate.WAITS
        is_away = birth.role in WEIGHTS and self._is_far
        return Fate.LEAVES if kind is Kind.OPTIMIZER or is_away else Fate.STAYS

    def after_load(self) -> None:
        """Partition the weights, one after another, and make masters, bucket and sums."""
        away, ranks = self._partition.weights_away, self._partition.ranks
        self._heap.partition(
            {
                number: 0 if away else math.ceil(birth.size / ranks)
                for number, birth in enumerate(self._partition.tape.births)
                if birth.role in WEIGHTS
            }
        )
        self._states.after_load()
        self._heap.born(FP32 * self._partition.bucket)
        self._heap.born(self._sums, Role.GRADIENT)

    def on_visit(self, visit: Visit) -> None:
        """Move weights, or put a gradient into the bucket."""
        match visit.moment:
            case Moment.GRADIENT:
                list(self._heap.end_gradients())
                self._bucket.take(self._coordinator.parameter(visit.layer, visit.weights[0]).numel)
                self._num_gradients += 1
            case Moment.SUMMED:
                if self._num_gradients == self._expected[visit.step, visit.micro_batch]:
                    self._bucket.reduce()
            case _:
                if visit.moment in (Moment.ENTER, Moment.ENTER_BACKWARD):
                    self._work.visit(is_forward=visit.moment is Moment.ENTER)
                self._coordinator.visit(visit)

    def end_backward(self, *, is_last: bool) -> None:  # noqa: ARG002  # as of any stage
        """Release what is left of this backward."""
        self._num_gradients = 0
        self._work.scatter()
        self._coordinator.release_backward_leftovers()

    def before_update(self) -> None:
        """Release all weights and take the norm."""
        self._coordinator.release_and_reset_all()
        self._states.before_update()

    def end_update(self) -> None:
        """Make the moments."""
        self._work.update()
        sending.numbers(self._partition, self._heap)
        self._states.end_update()


def _gradient_sizes(partition: Partition) -> frozenset[int]:
    """Return the bytes that gradients have: a loss survives its backward too, and is not one."""
    return frozenset(FP32 * elements(birth) for birth in partition.weights if birth.role is Role.TRAINABLE)


def _parameters(partition: Partition) -> dict[Module, Parameter]:
    return {
        (birth.layer, birth.module): Parameter(
            numel=elements(birth),
            itemsize=birth.size // max(1, elements(birth)),
            order=number,
            is_trainable=birth.role is Role.TRAINABLE,
            is_matrix=len(birth.shape) > 1,
        )
        for number, birth in enumerate(partition.weights)
    }


def _num_gradients(partition: Partition) -> Counter[tuple[int, int]]:
    """Return how many gradients each backward brings, by step and micro-batch."""
    return Counter(
        (birth.step, birth.micro_batch)
        for birth in partition.tape.births
        if isinstance(birth, Visit) and birth.moment is Moment.GRADIENT
    )
