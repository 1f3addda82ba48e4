"""Compute what one rank holds and sends of a step, from the dictionary that DeepSpeed will receive.

The plain engine's tape says what the model does. Of that, ZeRO replaces what it owns: masters, moments, gradient sums
and, at stage 3, the weights. Per rank, with P_t trained elements, P all elements, c bytes of the compute dtype and W
ranks (deepspeed/runtime/{bf16_optimizer, zero/stage_1_and_2, zero/stage3}.py, as allocated by 0.19):

    stage 1   flat weights c P_t, fp32 gradient sums 4 P_t, fp32 masters 4 P_t / W, half gradients c P_t until the step
    stage 2   flat weights c P_t, fp32 masters 4 P_t / W, the bucket in each backward, and from the first reduction of a
              step, which comes when the bucket is full or the backward at its end, to the update, sums 4 P_t / W
    stage 3   weights c P / W, masters 4 P_t / W, sums 4 P_t / W, the bucket in fp32, the weights that are gathered
    moments   8 P_t / W from the first step on, in all of them
    in fp32   at stage 2 the sums are those of all tensors that the rank owns a part of, each whole

Offloading moves masters, moments and sums into host memory, and offloaded parameters' share too; nvme moves them on.
Below stage 3 the sums of half gradients stay on the device all the same, and the host holds a copy of them. At
stage 1 a run that is offloaded or not in bf16 has the optimizer of stage 2, which then keeps whole gradients until the
last micro-batch.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ftkit.engine.ds_config import Sizes
from ftkit.engine.plain import BUCKET_ELEMENTS
from ftkit.engine.resolve import EngineKind, ResolvedRun
from ftkit.machine.heap import LARGEST_IN_HEAP
from ftkit.observe.tape import Role, Tape
from ftkit.plan.seconds.messages import Collective, Message, Wire
from ftkit.plan.zero.heap import FP32, Heap
from ftkit.plan.zero.partition import WEIGHTS, Partition, elements
from ftkit.plan.zero.rewrite import rewrite
from ftkit.plan.zero.stages import Replicated, stage_of
from ftkit.step.observer import Phase

CPU_ADAM_BYTES_PER_SECOND = 20e9
"""DeepSpeedCPUAdam is bound by host memory; two DDR4 channels read and write about this much."""
_LOSS = Message(Collective.SUM, FP32)
_GLOO_THREADS = 2
"""That take turns at what a process group has to do (torch 2.13, ProcessGroupGloo.hpp, `Options`)."""


@dataclass(frozen=True)
class RankShare:
    """The memory and traffic of one rank.

    Attributes:
        tape: the step with what this rank holds on its device.
        host_bytes: host memory.
        pinned_bytes: the locked part of it.
        shared_bytes: locked host memory that all ranks of a node have in common.
        nvme_bytes: on the disk.
        messages: that the ranks send each other in the last step of the tape, by phase.
        copied_bytes: of the largest weight that is gathered on a CPU: gloo gathers into a copy, in threads of its own,
            where no tape sees it (torch 2.13, ProcessGroupGloo.cpp, `_allgather_base` and `allgather`). Each of them
            keeps what it once took of a heap of its own.
        updated_bytes: fp32 values that the host updates; as many go there and come back.
        coming_bytes: of this rank's parts of offloaded weights, which come for the forward of a micro-batch and again
            for its backward.
    """

    tape: Tape
    host_bytes: int = 0
    pinned_bytes: int = 0
    shared_bytes: int = 0
    nvme_bytes: int = 0
    messages: Mapping[Phase, Counter[Message]] = field(default_factory=dict)
    copied_bytes: int = 0
    updated_bytes: int = 0
    coming_bytes: int = 0

    def sending_seconds(self, wire: Wire, repeats: float) -> float:
        """Return how long the messages of a step take.

        Args:
            wire: between the ranks.
            repeats: micro-batches of the step for each that was traced; the update comes once.
        """
        return sum(number * wire.seconds(one) for one, number in self._in_a_step(repeats))

    def sent(self, repeats: float) -> tuple[float, float]:
        """Return the messages of a step, and the bytes of their whole tensors; arguments as of `sending_seconds`."""
        sent = list(self._in_a_step(repeats))
        return sum(number for _, number in sent), sum(number * one.num_bytes for one, number in sent)

    def _in_a_step(self, repeats: float) -> Iterator[tuple[Message, float]]:
        for phase, counter in self.messages.items():
            for message, number in counter.items():
                yield message, number if phase is Phase.OPTIMIZER else repeats * number

    def offload_seconds(self, host_rate: float) -> float:
        """Return how long offloaded states take: copies there and back, and an update, which moves seven values each.

        Args:
            host_rate: bytes per second between the device and its host, in one direction.
        """
        return 2 * self.updated_bytes / host_rate + 7 * self.updated_bytes / CPU_ADAM_BYTES_PER_SECOND


def share_out(tape: Tape, run: ResolvedRun) -> RankShare:
    """Return what one rank holds and sends.

    Args:
        tape: of the plain engine on one device.
        run: the run, with its number of ranks and kind of device.

    Returns:
        One rank's share; the tape itself for one plain process.
    """
    ranks, device_type = run.devices.world_size, run.devices.device_type
    if run.engine is EngineKind.PLAIN:
        return RankShare(tape) if ranks == 1 else _replicated(tape, device_type)
    sizes = tape_sizes(tape)
    partition = Partition(tape, run.deepspeed_dict(sizes), run.dtype.itemsize, ranks, sizes, device_type)
    heap = Heap(tape)
    return RankShare(
        rewrite(tape, heap, stage_of(partition)(partition, heap)),
        **_elsewhere(partition),
        messages=_messages(heap),
        copied_bytes=_copied_bytes(partition),
        updated_bytes=0 if partition.on_device else FP32 * partition.trained_part,
        coming_bytes=2 * partition.weights_away_bytes,
    )


def _replicated(tape: Tape, device_type: str) -> RankShare:
    """Return the share of a rank of the plain engine."""
    heap = Heap(tape)
    rewritten = rewrite(tape, heap, Replicated(heap, _buckets(tape), takes_time=device_type == "cpu"))
    return RankShare(rewritten, messages=_messages(heap))


def _messages(heap: Heap) -> Mapping[Phase, Counter[Message]]:
    """Return what a heap has noted of the last step, with the sum of the losses."""
    last = max((step for _, step in heap.messages), default=0)
    found = {phase: counter for (phase, step), counter in heap.messages.items() if step == last}
    return found | {Phase.OPTIMIZER: found.get(Phase.OPTIMIZER, Counter()) + Counter({_LOSS: 1})}


def _buckets(tape: Tape) -> list[int]:
    """Return the elements of the flat buckets in which the plain engine sums gradients over ranks."""
    buckets = [0]
    for birth in tape.births:
        if birth.role is Role.TRAINABLE:
            buckets[-1] += elements(birth)
            if buckets[-1] >= BUCKET_ELEMENTS:
                buckets.append(0)
    return buckets


def tape_sizes(tape: Tape) -> Sizes:
    """Return what DeepSpeed's buckets are sized to, from a tape (as `engine.ds_config.measure_sizes`)."""
    layers: Counter[int] = Counter()
    weights = [birth for birth in tape.births if birth.role in WEIGHTS]
    for birth in weights:
        if birth.layer is not None:
            layers[birth.layer] += elements(birth)
    trained = [elements(birth) for birth in weights if birth.role is Role.TRAINABLE]
    largest = max(layers.values(), default=0) or max(map(elements, weights))
    return Sizes(sum(trained), max(trained), largest)


def _elsewhere(partition: Partition) -> dict[str, int]:
    """Return the bytes that are not on the device, by the field of a RankShare."""
    away, zero = partition.host_bytes, partition.zero
    if "nvme" in (partition.optimizer_at, partition.weights_at):
        return {"nvme_bytes": away}
    is_pinned = zero.get("offload_optimizer", zero.get("offload_param", {})).get("pin_memory")
    return {"host_bytes": away, "pinned_bytes": away if is_pinned else 0}


def _copied_bytes(partition: Partition) -> int:
    if partition.stage < 3 or partition.ranks == 1 or partition.device_type != "cpu":
        return 0
    largest = max(birth.size for birth in partition.weights)
    return largest if largest > LARGEST_IN_HEAP else _GLOO_THREADS * largest
