"""The time of a step, from what its operators compute and what asking for them costs.

A CPU asks and computes in turns. A GPU computes while the host asks for more: what a layer computes begins when the
host has asked for it, and when the layers before it are computed. So where the layers of a forward wait for the host,
and its head computes for long, a step takes both, one after the other, and not the longer of the two sums.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftkit.machine.heap import LARGEST_IN_HEAP
from ftkit.observe.tape import OpKey, Tape
from ftkit.plan.seconds.size import TRACED, Size
from ftkit.plan.seconds.speed import Device
from ftkit.step.observer import Phase

_MICRO_BATCHES = 3
"""After so many, each further one takes as long as the last."""


@dataclass(frozen=True)
class StepTime:
    """The time and the arithmetic of one optimizer step on one rank.

    Attributes:
        seconds: without communication.
        flops: of the model's matrix products, once each.
        forward_seconds: of one forward.
        returning_seconds: for which the link from the host is busy with what comes back for the backwards.
    """

    seconds: float
    flops: float
    forward_seconds: float
    returning_seconds: float = 0.0


@dataclass(frozen=True)
class _Work:
    """What a part of a step computes, and what asking for it costs, in seconds."""

    computing: float
    asking: float

    @classmethod
    def of(cls, phase: Phase, counter: Mapping[OpKey, int], device: Device, size: Size) -> "_Work":
        computing = asking = 0.0
        for (name, flops, moved, dtype), count in counter.items():
            # One kernel serves a whole list of parameters.
            kernels = 0 if name.startswith("_fused") else count
            share = size.of(name)
            computing += count * device.seconds(name, share * flops, share * moved, dtype)
            computing += kernels * device.kernel_seconds(name)
            asking += kernels * device.asking(name, phase)
        return cls(computing, asking)


@dataclass
class _Clock:
    """How far the host has asked, and a device has computed, in seconds from the start of a step."""

    device: Device
    asked: float = 0.0
    computed: float = 0.0

    def run(self, parts: Sequence[_Work], copying: float = 0.0) -> None:
        """Go through the parts of a phase.

        Args:
            parts: in their order.
            copying: what goes to the host or comes back meanwhile, which the next phase needs.
        """
        begun = max(self.computed, self.asked)
        for part in parts:
            if self.device.is_asynchronous:
                self.asked += part.asking
                self.computed = max(self.computed + part.computing, self.asked)
            else:
                self.computed += part.asking + part.computing
        if copying:
            self.computed = max(self.computed, begun + copying)

    @property
    def seconds(self) -> float:
        """When all is done."""
        return max(self.asked, self.computed)


def step_time(
    tape: Tape, device: Device, num_micro_batches: float, traced_micro_batches: int, size: Size = TRACED
) -> StepTime:
    """Return the time of the last traced step.

    Args:
        tape: of two steps; the second is the usual one.
        device: what computes.
        num_micro_batches: of a real step, or of many steps on average.
        traced_micro_batches: of the traced step, all alike.
        size: of a real micro-batch: what computes is so much less, and what asks is not.

    Returns:
        Time and work of one step.
    """
    last = max((step for _, step, _ in tape.costs), default=0)
    phases = {
        phase: [_Work.of(phase, part, device, TRACED if phase is Phase.OPTIMIZER else size) for part in parts]
        for phase, parts in _in_order(tape, last).items()
    }
    update = phases.pop(Phase.OPTIMIZER, [])
    repeats = num_micro_batches / traced_micro_batches
    # What waits on the host leaves beside the forward, and comes back beside the backward.
    phases_ended = Counter(phase for _, phase in tape.marks)
    # A forward of a micro-batch, or of all that go through layers together; a tape of a step has an update.
    num_forwards = phases_ended[Phase.FORWARD] / max(phases_ended[Phase.OPTIMIZER], 1)
    on_host = size.tokens * num_forwards * sum(map(sum, tape.on_host.values())) / device.host_rate
    copying = {Phase.FORWARD: on_host, Phase.BACKWARD: on_host}
    clock = _after(repeats, phases, copying, device)
    clock.run(update)
    cleared = {phase: num_bytes / device.fresh_rate for phase, num_bytes in _fresh_bytes(tape, device, last).items()}
    cleared_once = cleared.pop(Phase.OPTIMIZER, 0.0)
    forward = _Clock(device)
    forward.run(phases.get(Phase.FORWARD, []))
    return StepTime(
        clock.seconds + cleared_once + repeats * size.tokens * sum(cleared.values()),
        flops=size.tokens * repeats * tape.model_flops(last),
        forward_seconds=forward.seconds / traced_micro_batches,
        returning_seconds=repeats * on_host,
    )


def _in_order(tape: Tape, step: int) -> dict[Phase, list[Counter[OpKey]]]:
    """Return the parts of each phase of a step, one after another: layer by layer, and the head behind them.

    A tape does not tell the table of tokens from the head, which takes longer; the backward goes the other way.
    """
    parts: dict[Phase, dict[int | None, Counter[OpKey]]] = defaultdict(dict)
    for (phase, number, layer), counter in tape.costs.items():
        if number == step:
            parts[phase][layer] = counter
    ordered = {}
    for phase, layers in parts.items():
        numbers = sorted(layers, key=_place, reverse=phase is Phase.BACKWARD)
        ordered[phase] = [layers[number] for number in numbers]
    return ordered


def _place(layer: int | None) -> float:
    return math.inf if layer is None else layer


def _after(
    repeats: float, phases: Mapping[Phase, Sequence[_Work]], copying: Mapping[Phase, float], device: Device
) -> _Clock:
    """Return the clock after so many micro-batches; between whole numbers, and beyond the first, it goes on evenly."""
    clock, ends = _Clock(device), [(0.0, 0.0)]
    for _ in range(min(_MICRO_BATCHES, max(1, math.ceil(repeats)))):
        for phase, parts in phases.items():
            clock.run(parts, copying.get(phase, 0.0))
        ends.append((clock.asked, clock.computed))
    before = min(math.floor(repeats), len(ends) - 2)
    (asked, computed), (asked_next, computed_next) = ends[before], ends[before + 1]
    beyond = repeats - before
    return _Clock(device, asked + beyond * (asked_next - asked), computed + beyond * (computed_next - computed))


def _fresh_bytes(tape: Tape, device: Device, step: int) -> Counter[Phase]:
    """Return the bytes of the tensors of a step that are too large for the heap of a process on a CPU, by phase."""
    if device.fresh_rate == math.inf:
        return Counter()
    fresh: Counter[Phase] = Counter()
    for birth in tape.births:
        if birth.size > LARGEST_IN_HEAP and birth.step == step:
            fresh[birth.phase] += birth.size
    return fresh
