"""The memory of a run at its worst: on the device of one rank, as the system shows it, and on the host.

A GPU and a CPU differ in all of it. On a GPU an allocator keeps more than lives, a context lies beside it, and the host
loads the weights; on a CPU the process itself is what is measured, with its code and with what the C library keeps.
"""

from dataclasses import dataclass
from typing import Protocol

from ftkit.engine.resolve import EngineKind
from ftkit.observe.allocator import Replay, replay
from ftkit.observe.peaks import Peak, allocator_events, find_peak
from ftkit.plan.case import Case, Counts
from ftkit.plan.target import Target
from ftkit.plan.weights import weights_reason
from ftkit.plan.zero.share import RankShare
from ftkit.records.figures import MemoryBreakdown
from ftkit.step.observer import Phase
from ftkit.units import format_bytes

RUNTIME_BYTES = 520 * 10**6
"""Resident memory of one process on a CPU before any weight: Python, torch, transformers, peft, and what a step
compiles (seen in /proc/self/status after a step, weights and free heap taken off)."""
DEEPSPEED_RUNTIME_BYTES = 50 * 10**6
"""What DeepSpeed and the process group add to it."""
HEAP_BYTES = 300 * 10**6
"""The C library keeps freed blocks below 32 MiB for later: as much again as comes and goes in a step, and about this
much at most (seen as what malloc_trim gives back after three steps)."""
CUDA_HOST_BYTES = 2**30
"""Host memory of one process with CUDA's libraries; a guess, since none has been measured."""


@dataclass(frozen=True)
class Memory:
    """The worst moment of a run.

    Attributes:
        peak: of live storages, on the device of one rank.
        reserved_bytes: segments of the caching allocator; None on a CPU.
        process_bytes: of one process, as the system shows it.
        host_bytes: host memory of all ranks.
        pinned_bytes: the locked part of it.
        nvme_bytes: on the disk, of all ranks.
        reason: why it does not fit; None where it does.
    """

    peak: Peak
    reserved_bytes: int | None
    process_bytes: int
    host_bytes: int
    pinned_bytes: int
    nvme_bytes: int
    reason: str | None


class Device(Protocol):
    """Says what a kind of device needs for a run."""

    def of_step(self, share: RankShare) -> Memory:
        """Return the worst moment of a step that was traced."""

    def of_parts(self, parts: MemoryBreakdown) -> Memory:
        """Return the worst moment of a step of which the parts of the peak alone are known."""


def device_of(case: Case, counts: Counts) -> Device:
    """Return the device of a case.

    Args:
        case: the run and its target.
        counts: of its weights.
    """
    return CudaDevice(case, counts) if case.target.device_type == "cuda" else CpuDevice(case, counts)


@dataclass(frozen=True)
class CudaDevice:
    """A GPU with torch's caching allocator, and a host beside it."""

    case: Case
    counts: Counts

    @property
    def room(self) -> int:
        """Bytes for tensors."""
        return self.case.target.memory_bytes - self.case.target.context_bytes

    def of_step(self, share: RankShare) -> Memory:
        """Return the worst moment of a step: every request is replayed on a model of the allocator."""
        peak, events = find_peak(share.tape), allocator_events(share.tape)
        grows = self.case.run.config.engine.expandable_segments
        reserved = replay(events, expandable=grows).peak_reserved_bytes
        # What fits without asking for anything back needs no second replay; nor does what is more than there is room.
        may_fit = peak.active_bytes <= self.room
        if reserved <= self.room or (may_fit and self._replay(events, expandable=grows).fits):
            return self._memory(peak, reserved, share, None)
        reason = _too_large(self.case.target, peak, max(reserved, peak.active_bytes))
        if may_fit and not grows and self._replay(events, expandable=True).fits:
            reason += ", with segments of fixed size; with growing segments it fits (engine.expandable_segments=true)"
        return self._memory(peak, reserved, share, reason)

    def of_parts(self, parts: MemoryBreakdown) -> Memory:
        """Return the worst moment: without a trace nothing is known of fragmentation."""
        peak = _peak(parts)
        reason = None if peak.active_bytes <= self.room else _too_large(self.case.target, peak, peak.active_bytes)
        return self._memory(peak, peak.active_bytes, None, reason)

    def _replay(self, events: list[tuple[int, int]], *, expandable: bool) -> Replay:
        return replay(events, self.room, expandable=expandable)

    def _memory(self, peak: Peak, reserved: int, share: RankShare | None, reason: str | None) -> Memory:
        process = reserved + self.case.target.context_bytes
        # Each process loads all weights before they go to the device.
        host = CUDA_HOST_BYTES + self.counts.load_bytes + (share.host_bytes if share is not None else 0)
        return _on_node(self.case.target, peak, reserved, process, host, share, reason)


@dataclass(frozen=True)
class CpuDevice:
    """A CPU: the device's memory is the host's, and the process itself counts."""

    case: Case
    counts: Counts

    def of_step(self, share: RankShare) -> Memory:
        """Return the worst moment of a step, with what the C library keeps of the blocks that come and go."""
        peak = find_peak(share.tape, int)
        comes_and_goes = peak.active_bytes - dict(share.tape.at_marks()[:1]).get(Phase.LOAD, 0)
        return self._memory(peak, peak.active_bytes + share.host_bytes + min(HEAP_BYTES, comes_and_goes), share)

    def of_parts(self, parts: MemoryBreakdown) -> Memory:
        """Return the worst moment."""
        peak = _peak(parts)
        return self._memory(peak, peak.active_bytes, None)

    def _memory(self, peak: Peak, held: int, share: RankShare | None) -> Memory:
        target, run = self.case.target, self.case.run
        runtime = RUNTIME_BYTES + (DEEPSPEED_RUNTIME_BYTES if run.engine is EngineKind.DEEPSPEED else 0)
        process = runtime + max(held, self.counts.load_bytes)
        fits = peak.active_bytes <= target.memory_bytes
        reason = None if fits else _too_large(target, peak, peak.active_bytes)
        return _on_node(target, peak, None, process, process, share, reason)


def _peak(parts: MemoryBreakdown) -> Peak:
    """Return the peak of a step that was not traced: in the backward, the usual place."""
    return Peak(parts.total_bytes, parts, Phase.BACKWARD, 2, "", None)


def _on_node(  # noqa: PLR0913  # the fields of a Memory
    target: Target,
    peak: Peak,
    reserved: int | None,
    process: int,
    host: int,
    share: RankShare | None,
    reason: str | None,
) -> Memory:
    """Add up what all ranks of a node need of the host.

    Args:
        target: the node.
        peak: of one rank.
        reserved: of one rank.
        process: of one rank.
        host: host memory of one rank.
        share: of one rank; None: nothing is offloaded.
        reason: why the device is too small; None: it is not.
    """
    ranks = target.num_devices
    pinned = 0 if share is None else ranks * share.pinned_bytes
    nvme = 0 if share is None else ranks * share.nvme_bytes
    reason = reason or _host_reason(target, ranks * host, pinned)
    return Memory(peak, reserved, process, ranks * host, pinned, nvme, reason)


def _too_large(target: Target, peak: Peak, needed: int) -> str:
    """Return why a device is too small, in words that go on from "this run".

    Args:
        target: the device.
        peak: the worst moment.
        needed: bytes without the context.
    """
    need = format_bytes(needed + target.context_bytes)
    if (alone := weights_reason(target, peak.breakdown.parameter_bytes)) is not None:
        return f"{alone}; with the rest it needs {need}"
    return f"needs {need} of the {format_bytes(target.memory_bytes)} of {target.name}"


def _host_reason(target: Target, host: int, pinned: int) -> str | None:
    """Return why a node's memory is too small; None where it is not, or not known."""
    if target.ram_bytes is not None and host > target.ram_bytes:
        return f"needs {format_bytes(host)} of host memory, and there are {format_bytes(target.ram_bytes)}"
    if target.locked_bytes is not None and pinned > target.locked_bytes:
        return f"pins {format_bytes(pinned)} of host memory, and the shell's limit (ulimit -l) is lower"
    return None
