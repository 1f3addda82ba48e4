"""The types of a prediction: what a record may lack, a plan may not.

Of a step that was traced, memory and time are known; of one for which a formula stands in, memory alone. A caller that
needs a time has to tell the two apart.
"""

from dataclasses import asdict, dataclass

from ftkit.records.figures import MemoryBreakdown
from ftkit.records.schema import Basis, Prediction, Verdict
from ftkit.records.streamed import StreamPlan


class MemoryPrediction(Prediction):
    """What every plan says."""

    basis: Basis
    device: str
    precision: str
    micro_batch_size: int
    num_micro_batches: int
    sequence_length: int
    num_parameters: int
    num_trainable_parameters: int
    peak_active_bytes: int
    peak_process_bytes: int
    peak_breakdown: MemoryBreakdown
    peak_phase: str
    budget_bytes: int
    context_bytes: int
    host_bytes: int
    pinned_bytes: int
    nvme_bytes: int
    disk_bytes: int
    result_bytes: int
    """The trained model or its adapter, a part of `disk_bytes`."""
    source_bytes: int
    """The files that the model is read from."""
    fits: bool
    verdict: Verdict
    process_low_bytes: int
    process_high_bytes: int

    @property
    def needed_bytes(self) -> int:
        """The memory of the process at its peak, as the system reports it; on a CPU that of the longest texts."""
        return self.process_high_bytes if self.device == "cpu" else self.peak_process_bytes


class FormulaPrediction(MemoryPrediction):
    """A prediction by a formula, of a step that cannot be traced: it knows no time."""


class TracedPrediction(MemoryPrediction):
    """A prediction of a step that was traced, or that lies between two that were: it knows the time too."""

    step_seconds: float
    samples_per_second: float
    tokens_per_second: float
    device_flops: float
    model_flops_utilization: float


AnyPrediction = TracedPrediction | FormulaPrediction


@dataclass(frozen=True)
class Speed:
    """How fast a run is, in the words of a `Prediction`."""

    step_seconds: float
    samples_per_second: float
    tokens_per_second: float
    device_flops: float
    model_flops_utilization: float
    total_seconds: float | None
    speed_source: str
    evaluation_tokens_per_second: float
    streamed: StreamPlan | None = None


def traced(memory: MemoryPrediction, speed: Speed) -> TracedPrediction:
    """Return a prediction of memory and time."""
    return TracedPrediction.model_validate(dict(memory) | asdict(speed))


def by_formula(memory: MemoryPrediction) -> FormulaPrediction:
    """Return a prediction of memory alone."""
    return FormulaPrediction.model_validate(dict(memory))
