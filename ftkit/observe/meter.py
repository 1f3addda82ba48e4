"""The peaks of each phase of a run, from the system's own counters, at a cost that training does not feel.

A phase's peak needs the counters read and reset where it begins and ends: some microseconds each on Linux and on CUDA.
So the phases of the first steps are told apart, and of one step in `every` after that; between them the counters run
on, and what they reach counts towards the peak of the run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.machine import memory
from ftkit.machine.driver import device_process_bytes
from ftkit.machine.energy import EnergyMeter
from ftkit.machine.hardware import device_flops
from ftkit.machine.process import ProcessContext
from ftkit.records.schema import PhaseMeasurement, Prediction
from ftkit.step.observer import Phase

if TYPE_CHECKING:
    import torch

_FIRST_STEPS = 3
"""The first step has no optimizer state yet, the second grows what the allocator holds, the third is like the rest."""

_PROCESS_SOURCES = {True: "resident set", False: "NVML, read at the end of each phase"}
"""Whether the device is a CPU, to how the bytes of the process are taken; a caching allocator gives little back."""

TRAINING = "training"
"""The phase of steps whose phases are not told apart."""


@dataclass(frozen=True)
class Reading:
    """Peaks since the counters were last reset; None where the device or the system has no such counter."""

    active_bytes: int | None = None
    reserved_bytes: int | None = None
    process_bytes: int | None = None
    host_bytes: int | None = None

    def larger(self, other: "Reading") -> "Reading":
        """Return the larger of each figure."""
        return Reading(
            _larger(self.active_bytes, other.active_bytes),
            _larger(self.reserved_bytes, other.reserved_bytes),
            _larger(self.process_bytes, other.process_bytes),
            _larger(self.host_bytes, other.host_bytes),
        )


class Meter:
    """Follows a run through its phases.

    Attributes:
        peaks: phase to its peaks so far.
        energy: what has been taken since the start.
    """

    def __init__(self, device: "torch.device", every: int = 16) -> None:
        """Start in the phase `load`.

        Args:
            device: whose counters are read.
            every: of how many steps one has its phases told apart, after the first few.
        """
        self.peaks: dict[str, Reading] = {}
        self._device, self._every = device, every
        self.energy = EnergyMeter(device)
        self._phase: str = Phase.LOAD
        self._step = 0
        memory.reset_peaks(device)

    def enter(self, phase: str) -> None:
        """End the current phase and begin another; continuing the same one costs nothing."""
        if phase != self._phase:
            self._read()
            memory.reset_peaks(self._device)
            self._phase = phase

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Begin a phase, told apart where it is an evaluation's or this step's are; an update ends a step."""
        told_apart = self._step < _FIRST_STEPS or self._step % self._every == 0
        self.enter(phase if told_apart or phase is Phase.EVALUATION else TRAINING)
        yield
        if phase is Phase.OPTIMIZER:
            self._step += 1

    def discard(self, phase: str) -> None:
        """Forget a phase whose peaks are not the run's, and start again from what is held now."""
        self._read()
        self.peaks.pop(phase, None)
        memory.reset_peaks(self._device)
        self._phase = TRAINING

    def overall(self) -> Reading:
        """Return the peaks of all phases."""
        self._read()
        whole = Reading()
        for reading in self.peaks.values():
            whole = whole.larger(reading)
        return whole

    def phases(self, rank: int) -> list[PhaseMeasurement]:
        """Return the phases that were told apart, as a record has them."""
        self._read()
        return [
            PhaseMeasurement(
                phase=phase,
                rank=rank,
                peak_active_bytes=reading.active_bytes,
                peak_reserved_bytes=reading.reserved_bytes,
                peak_process_bytes=reading.process_bytes,
                host_bytes=reading.host_bytes,
            )
            for phase, reading in self.peaks.items()
            if phase != TRAINING
        ]

    def _read(self) -> None:
        self.energy.read()
        active, reserved = memory.peak_allocator_bytes(self._device)
        host = memory.peak_resident_bytes()
        process = host if self._device.type == "cpu" else device_process_bytes(self._device)
        reading = Reading(active, reserved, process, host)
        self.peaks[self._phase] = reading.larger(self.peaks.get(self._phase, Reading()))


@dataclass(frozen=True)
class RankPeaks:
    """The peaks that one rank reached, and the energy that was taken meanwhile.

    Attributes:
        whole: of all phases.
        phases: of each.
        processor_joules: of its machine.
        gpu_joules: of its device.
    """

    whole: Reading
    phases: list[PhaseMeasurement]
    processor_joules: float | None = None
    gpu_joules: float | None = None


def gather(meter: Meter, process: ProcessContext) -> list[RankPeaks]:
    """Return what every rank reached, on every rank; called by all of them.

    Args:
        meter: of this rank.
        process: the place of this process.

    Returns:
        One entry for each rank, in their order.
    """
    whole, phases, energy = meter.overall(), meter.phases(process.rank), meter.energy
    own = RankPeaks(whole, phases, energy.processor_joules, energy.gpu_joules)
    if process.world_size == 1:
        return [own]
    from torch import distributed

    ranks: list[Any] = [None] * process.world_size
    distributed.all_gather_object(ranks, own)
    return ranks


def memory_figures(ranks: list[RankPeaks], device: "torch.device") -> dict[str, Any]:
    """Return the fields of a Measurement that a meter knows.

    Args:
        ranks: what `gather` returned.
        device: what computed.

    Returns:
        The peaks of the rank that has most, the host memory of all, the phases of each, and how they were taken.
    """
    whole = Reading()
    for rank in ranks:
        whole = whole.larger(rank.whole)
    hosts, gpus = [rank.whole.host_bytes for rank in ranks], [rank.gpu_joules for rank in ranks]
    return {
        "peak_active_bytes": whole.active_bytes,
        "peak_reserved_bytes": whole.reserved_bytes,
        "peak_process_bytes": whole.process_bytes,
        "active_source": None if whole.active_bytes is None else "allocator statistics",
        "process_source": None if whole.process_bytes is None else _PROCESS_SOURCES[device.type == "cpu"],
        "peak_phase": _peak_phase(ranks),
        "host_bytes": sum(host for host in hosts if host is not None) if all(hosts) else None,
        "processor_joules": ranks[0].processor_joules,
        "gpu_joules": None if None in gpus else sum(gpus),
        "phases": tuple(phase for rank in ranks for phase in rank.phases),
    }


def known_flops(device: str, precision: str, prediction: Prediction | None) -> float | None:
    """Return a device's dense FLOP/s: the table's, or of a CPU what the plan timed; None where neither says it.

    Args:
        device: by name.
        precision: `fp16`, `bf16` or `fp32`.
        prediction: of the run on this device.
    """
    if device == "cpu" and prediction is not None:
        return prediction.device_flops
    return device_flops(device, precision)


def planned_utilization(
    prediction: Prediction | None, tokens_per_second: float | None, device: str, precision: str
) -> float | None:
    """Return the model FLOPs utilization of a job: its tokens a second by those at the device's peak (Chowdhery 2022).

    Args:
        prediction: knows the FLOPs of a token, in sequences of the plan's length.
        tokens_per_second: real ones, of the whole job.
        device: by name.
        precision: `fp16`, `bf16` or `fp32`.

    Returns:
        A share; None where one of these is not known.
    """
    if prediction is None or known_flops(device, precision, prediction) is None:
        return None
    rate, share = prediction.tokens_per_second, prediction.model_flops_utilization
    return tokens_per_second / rate * share if tokens_per_second and rate and share else None


def _peak_phase(ranks: list[RankPeaks]) -> str | None:
    """Return the phase of the largest peak: of live tensors, else of the process."""
    phases = [phase for rank in ranks for phase in rank.phases]
    for field in ("peak_active_bytes", "peak_process_bytes"):
        taken = [(getattr(phase, field), phase.phase) for phase in phases if getattr(phase, field)]
        if taken:
            return max(taken)[1]
    return None


def _larger(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
