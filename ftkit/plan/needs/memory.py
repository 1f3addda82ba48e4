"""The memory of a run at its worst: on the device of one rank, as the system shows it, and on the host.

A GPU and a CPU differ in all of it. On a GPU an allocator keeps more than lives, a context lies beside it, and the host
loads the weights; on a CPU the process itself is what is measured, with its code and with what the C library keeps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

import torch

from ftkit.engine.resolve import EngineKind
from ftkit.observe.allocator import replay
from ftkit.observe.peaks import Peak, allocator_events, find_peak
from ftkit.observe.tape import Role, Tape
from ftkit.plan.inputs.case import Case, Counts
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.bare import CUDA_HOST_BYTES, RUNTIME_BYTES
from ftkit.plan.needs.compiling import KERNEL_BYTES, kept_bytes
from ftkit.plan.needs.fallback import Elsewhere
from ftkit.plan.needs.heap import free_in_heap
from ftkit.plan.needs.loading import loading_bytes, stored_bytes_beside
from ftkit.plan.needs.mixture import uneven_bytes
from ftkit.plan.needs.weights import weights_reason
from ftkit.plan.zero.share import RankShare
from ftkit.records.figures import MemoryBreakdown
from ftkit.records.schema import Verdict
from ftkit.step.observer import Phase
from ftkit.units import format_bytes

LATER_BYTES = 45 * 10**6
"""What steps, scores and saving touch of the libraries for the first time, beside a plan that a copy of the process
makes (MiniLM in fp32: LoRA, LoRA over streamed layers and feature extraction, 25 steps and the end of a run each)."""
RAGGED_BYTES = 18 * 10**6
"""What micro-batches of many sizes leave free in the heap beside those of one size (as above, and full fine-tuning)."""
DEEPSPEED_RUNTIME_BYTES = 67 * 10**6
"""What DeepSpeed and the process group add to it (two ranks of MiniLM under ZeRO-2, before a step, without weights)."""
PARTITIONED_RUNTIME_BYTES = 17 * 10**6
"""What the hooks and states of partitioned weights add under ZeRO-3 (as above)."""
PACKED_RUNTIME_BYTES = 47 * 10**6
"""What weights in 4 bits add in fp32 (MiniLM): the pages of the file that they were read from stay, since other weights
are used where they lie there. A run in bf16 converts all weights, and lets go of the file."""
MKL_BYTES = 58 * 10**6
"""What MKL keeps of the memory that it packs matrices in, a block for each width of a product, where one is as wide as
a vocabulary of 8,000 (Llama in fp32, with and without `MKL_DISABLE_FAST_MM`); less than `LATER_BYTES` has without."""
HALF_RUNTIME_BYTES = 22 * KERNEL_BYTES
"""Of the kernels that are compiled before the first step, to try the padding and the loss (a Xeon with AMX,
LoRA on MiniLM)."""
RESERVED_NOISE = 0.075
"""By how much of it what the allocator reserves may be more than its model says: of the published rows on a T4 and on
an RTX 4080 the worst is 7.2 % (docs/truth.md). Most of it is given back before a card is full."""
REPLAY_NOISE = 0.025
"""What a verdict leaves free: with a card's end in sight the allocator gives back what it caches, and the worst of the
published rows that filled their cards is 2.44 % (fsdp_qlora, docs/truth.md). Segments that grow need nothing left."""


@dataclass(frozen=True)
class Memory:
    """The worst moment of a run.

    Attributes:
        peak: of live storages, on the device of one rank.
        reserved_bytes: segments of the caching allocator; None on a CPU.
        process_bytes: of one process, as the system shows it.
        process_range: the least and the most that it may be.
        host_bytes: host memory of all ranks.
        pinned_bytes: the locked part of it.
        nvme_bytes: on the disk, of all ranks.
        verdict: whether it fits, and how sure that is.
        reason: why it does not fit, or may not; None where it does.
        verdict_by: the ends of what is not known by which the verdict was found; None on a CPU, and where the host
            decides.
        returned_bytes: what the allocator would reserve beyond that of a device without an end, and gives back.
    """

    peak: Peak
    reserved_bytes: int | None
    process_bytes: int
    process_range: tuple[int, int]
    host_bytes: int
    pinned_bytes: int
    nvme_bytes: int
    verdict: Verdict
    reason: str | None
    verdict_by: str | None = None
    returned_bytes: int = 0


class Device(Protocol):
    """Says what a kind of device needs for a run."""

    def of_step(self, share: RankShare) -> Memory:
        """Return the worst moment of a step that was traced."""

    def of_parts(self, parts: MemoryBreakdown, elsewhere: Elsewhere) -> Memory:
        """Return the worst moment of a step of which the parts of the peak, and what lies elsewhere, alone are known.

        The high end of its range is that of tokens that all go to the same experts, where there are any.
        """


def device_of(case: Case, counts: Counts) -> Device:
    """Return the device of a case.

    Args:
        case: the run and its target.
        counts: of its weights.
    """
    return CudaDevice(case, counts) if case.target.device_type == "cuda" else CpuDevice(case, counts)


class _Judged(NamedTuple):
    """A verdict, and the ends by which it was found."""

    verdict: Verdict
    by: str


class _Held(NamedTuple):
    """The segments of the allocator at their most, and what it gave back because there was no room for more."""

    reserved: int
    returned: int = 0


@dataclass(frozen=True)
class CudaDevice:
    """A GPU with torch's caching allocator, and a host beside it."""

    case: Case
    counts: Counts

    def of_step(self, share: RankShare) -> Memory:
        """Return the worst moment of a step: every request is replayed on a model of the allocator."""
        peak, events = find_peak(share.tape), allocator_events(share.tape)
        grows = self.case.run.config.engine.expandable_segments
        reserved = replay(events, expandable=grows).peak_reserved_bytes

        def fits(room: int, *, expandable: bool) -> bool:
            # What lives does not fit, or nothing is asked back: no second replay is needed.
            if peak.active_bytes > room or (reserved <= room and expandable == grows):
                return peak.active_bytes <= room
            return replay(events, room, expandable=expandable).fits

        judged = self._judge(partial(fits, expandable=grows), 0.0 if grows else REPLAY_NOISE)
        held = self._held(events, reserved, judged.verdict)
        if judged.verdict is Verdict.FITS:
            return self._memory(peak, held, share, judged, None)
        reason = _too_large(self.case.target, peak, max(held.reserved, peak.active_bytes))
        if held.returned:
            reason += f", once the allocator gives back {format_bytes(held.returned)} of cached blocks"
        if not grows and self._judge(partial(fits, expandable=True), 0.0).verdict is Verdict.FITS:
            reason += ", with segments of fixed size; with growing segments it fits (engine.expandable_segments=true)"
        return self._memory(peak, held, share, judged, reason)

    def _held(self, events: Sequence[tuple[int, int]], reserved: int, verdict: Verdict) -> _Held:
        """Return what the allocator holds on this card, after it has given back what it caches where that fills it.

        Args:
            events: of a step.
            reserved: what they reserve of a device without an end.
            verdict: whether the step fits.
        """
        target = self.case.target
        room = target.memory_bytes - target.context_bytes
        if reserved <= room or verdict is Verdict.DOES_NOT_FIT:
            return _Held(reserved)
        within = replay(events, room, expandable=self.case.run.config.engine.expandable_segments)
        if not within.fits and verdict is Verdict.MAY_NOT_FIT:  # it fits beside a smaller context alone
            return _Held(reserved)
        return _Held(within.peak_reserved_bytes, reserved - within.peak_reserved_bytes)

    def of_parts(self, parts: MemoryBreakdown, elsewhere: Elsewhere) -> Memory:
        """Return the worst moment: without a trace nothing is known of fragmentation."""
        peak, uneven = _peak(parts), uneven_bytes(self.case)
        judged = self._judge(lambda room: peak.active_bytes <= room, REPLAY_NOISE, uneven)
        needed = peak.active_bytes + uneven
        reason = None if judged.verdict is Verdict.FITS else _too_large(self.case.target, peak, needed)
        memory = self._memory(peak, _Held(peak.active_bytes), elsewhere, judged, reason)
        least, most = memory.process_range
        return replace(memory, process_range=(least, most + uneven))

    def _judge(self, fits: Callable[[int], bool], noise: float, uneven: int = 0) -> _Judged:
        """Ask at the worse end of what is not known, and then at the better one."""
        memory, (low, high) = self.case.target.memory_bytes, self.case.target.context_range
        routing = f", and {format_bytes(uneven)} for tokens that all go to the same experts" if uneven else ""
        worse = f"the worse end: a context of {format_bytes(high)}, and {noise:.1%} more reserved{routing}"
        better = f"the better end: a context of {format_bytes(low)}, and nothing more reserved"
        if fits(int((memory - high) / (1 + noise)) - uneven):
            return _Judged(Verdict.FITS, worse)
        if fits(memory - low):
            return _Judged(Verdict.MAY_NOT_FIT, f"{better}; not by {worse}")
        return _Judged(Verdict.DOES_NOT_FIT, f"even {better}")

    def _memory(
        self, peak: Peak, held: _Held, share: RankShare | Elsewhere, judged: _Judged, reason: str | None
    ) -> Memory:
        low, high = self.case.target.context_range
        process, most = held.reserved + high, int(held.reserved * (1 + RESERVED_NOISE)) + high
        # What fits never shows more than the card has: a full card's allocator gives back what it caches.
        most = min(most, self.case.target.memory_bytes) if judged.verdict is Verdict.FITS else most
        loading = loading_bytes(self.case, self.counts, peak.breakdown.parameter_bytes)
        host = CUDA_HOST_BYTES + loading + share.host_bytes
        ends = peak.active_bytes + low, most
        memory = Memory(
            peak, held.reserved, process, ends, host, 0, 0, judged.verdict, reason, judged.by, held.returned
        )
        return _on_node(self.case.target, memory, share)


@dataclass(frozen=True)
class CpuDevice:
    """A CPU: the device's memory is the host's, and the process itself counts."""

    case: Case
    counts: Counts

    def of_step(self, share: RankShare) -> Memory:
        """Return the worst moment of a step, with what the C library keeps of the blocks that come and go."""
        peak = find_peak(share.tape, int)
        held = peak.active_bytes + share.host_bytes + share.copied_bytes + self._kernel_bytes(share.tape)
        kept = free_in_heap(share.tape, peak.active_bytes) + self._compiled_bytes(share.tape)
        return self._memory(peak, held, kept, share)

    def of_parts(self, parts: MemoryBreakdown, elsewhere: Elsewhere) -> Memory:
        """Return the worst moment; one that uneven routing alone makes too large may not fit."""
        peak, uneven = _peak(parts), uneven_bytes(self.case)
        memory = self._memory(peak, peak.active_bytes + elsewhere.host_bytes, 0, elsewhere)
        least, most = memory.process_range
        memory = replace(memory, process_range=(least, most + uneven))
        needed = peak.active_bytes + uneven
        if memory.verdict is not Verdict.FITS or needed <= self.case.target.memory_bytes:
            return memory
        return replace(memory, verdict=Verdict.MAY_NOT_FIT, reason=_too_large(self.case.target, peak, needed))

    def _kernel_bytes(self, tape: Tape) -> int:
        """Return what kernels keep for themselves, where no tape sees it."""
        packed = any(birth.role is Role.CONSTANT for birth in tape.births)
        is_wide = self.case.run.config.task == "causal-lm"
        is_single = self.case.run.dtype is torch.float32
        has_mkl = torch.backends.mkl.is_available() and is_single  # as measured
        return (packed and is_single) * PACKED_RUNTIME_BYTES + (is_wide and has_mkl) * MKL_BYTES

    def _compiled_bytes(self, tape: Tape) -> int:
        """Return what products in half precision take beside their tensors, where the processor multiplies these."""
        run = self.case.run
        if run.dtype is torch.float32 or not run.devices.has_bf16:
            return 0
        return HALF_RUNTIME_BYTES + kept_bytes(self.case, tape)

    def _memory(self, peak: Peak, held: int, kept: int, share: RankShare | Elsewhere) -> Memory:
        target, run = self.case.target, self.case.run
        runtime = RUNTIME_BYTES if target.held_bytes is None else target.held_bytes + LATER_BYTES
        runtime += DEEPSPEED_RUNTIME_BYTES if run.engine is EngineKind.DEEPSPEED else 0
        is_ragged = run.dtype is torch.float32 and self.case.sequences.lengths  # else kernels part the heap
        runtime += RAGGED_BYTES if is_ragged and target.held_bytes is not None else 0
        runtime += PARTITIONED_RUNTIME_BYTES if run.partitions_weights else 0
        before = RUNTIME_BYTES - LATER_BYTES if target.held_bytes is None else target.held_bytes
        loaded, pages = before + self.counts.load_bytes, stored_bytes_beside(self.case, self.counts)
        least, process = (max(runtime + size, loaded + pages) for size in (held, held + kept))
        most = max(runtime + held + kept, loaded)  # pages of files go where anything else needs their place
        fits = peak.active_bytes <= target.memory_bytes
        reason = None if fits else _too_large(target, peak, peak.active_bytes)
        verdict = Verdict.FITS if fits else Verdict.DOES_NOT_FIT
        return _on_node(target, Memory(peak, None, process, (least, process), most, 0, 0, verdict, reason), share)


def _peak(parts: MemoryBreakdown) -> Peak:
    """Return the peak of a step that was not traced: in the backward, the usual place."""
    return Peak(parts.total_bytes, parts, Phase.BACKWARD, 2, "", None)


def _on_node(target: Target, memory: Memory, share: RankShare | Elsewhere) -> Memory:
    """Add up what all ranks of a node need of the host.

    Args:
        target: the node.
        memory: of one rank.
        share: of one rank.
    """
    ranks = target.num_devices
    pinned, nvme = ranks * share.pinned_bytes + share.shared_bytes, ranks * share.nvme_bytes
    host = ranks * memory.host_bytes + share.shared_bytes
    memory = replace(memory, host_bytes=host, pinned_bytes=pinned, nvme_bytes=nvme)
    reason = _host_reason(target, host, pinned)
    if reason is None or memory.verdict is Verdict.DOES_NOT_FIT:
        return memory
    return replace(memory, verdict=Verdict.DOES_NOT_FIT, reason=reason, verdict_by=None)


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
