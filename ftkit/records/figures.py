"""The figures that a plan predicts and a run measures alike, and what a line of a record is."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen line; keys of a newer schema are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Kind(StrEnum):
    """A part of a peak, the steadiest first: the order in which charts stack them."""

    PARAMETER = "parameter"  # weights
    BUFFER = "buffer"  # what a model, an engine or a library holds beside its weights, and the batch
    OPTIMIZER = "optimizer"  # masters and moments
    GRADIENT = "gradient"
    ACTIVATION = "activation"  # what a forward leaves for the backward
    TEMPORARY = "temporary"

    @property
    def field(self) -> str:
        """Its name in a breakdown."""
        return f"{self}_bytes"


class MemoryBreakdown(Record):
    """The parts of a peak, in bytes; a field for each `Kind`."""

    parameter_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    activation_bytes: int = 0
    temporary_bytes: int = 0
    buffer_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return sum(self.model_dump().values())


class Figures(Record):
    """The figures that a plan predicts and a run measures; a figure that was not taken is None."""

    device: str | None = None
    """What computes, such as `NVIDIA T4` or `cpu`."""
    peak_active_bytes: int | None = None
    """Live tensors at the peak, on the rank that has most."""
    peak_reserved_bytes: int | None = None
    """The caching allocator's segments at the peak."""
    peak_process_bytes: int | None = None
    """What the system shows for one process: NVML on a GPU, resident memory on a CPU."""
    peak_breakdown: MemoryBreakdown | None = None
    """The parts of the active peak."""
    peak_phase: str | None = None
    """`load`, `forward`, `backward`, `optimizer` or `evaluation`."""
    host_bytes: int | None = None
    """Host memory of all ranks of one node."""
    disk_bytes: int | None = None
    """What a run keeps in its folder: checkpoints and the result."""
    result_bytes: int | None = None
    """Of a plan: the trained model or its adapter, a part of `disk_bytes`."""
    source_bytes: int | None = None
    """Of a plan: the files that the model is read from."""
    num_parameters: int | None = None
    num_trainable_parameters: int | None = None
    step_seconds: float | None = None
    """The median optimizer step."""
    tokens_per_second: float | None = None
    """Real (not padding) tokens of the whole job."""
    evaluation_tokens_per_second: float | None = None
    """The same of an evaluation, which is forwards alone; planned, and not measured."""
    samples_per_second: float | None = None
    model_flops_utilization: float | None = None


class LiveTensor(Record):
    """A storage that was alive at a peak."""

    num_bytes: int
    kind: str
    """`parameter`, `gradient`, `optimizer`, `activation`, `temporary` or `buffer`."""
    module: str
    """The module whose code made it; of what a backward makes, the layer that it went through."""
    op: str = ""
    """The operator that made it; empty for what was there before."""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    """Such as `bfloat16`."""
