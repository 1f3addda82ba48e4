"""The schema of a record: what was planned and what was observed, in base units, as JSON lines.

A run writes one `record.jsonl`: a `run` line first, then `step` and `evaluation` lines as they happen, a `result`
line last. Each line is whole by itself, so a killed run loses at most its last line.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from ftkit.records.figures import Figures, LiveTensor, MemoryBreakdown, Record
from ftkit.records.job import JobPlan
from ftkit.records.scores import Scores
from ftkit.records.streamed import StreamPlan
from ftkit.records.trunk import TrunkPlan

SCHEMA_VERSION = 1


class Basis(StrEnum):
    """How a prediction was made."""

    TRACED = "traced"
    """The step was traced on a few layers, which stand for all."""
    TRACED_WHOLE = "traced whole"
    """The step was traced on every layer."""
    INTERPOLATED = "interpolated"
    """It lies between two that were made."""
    FORMULA = "formula"
    """A formula stands in for a step that cannot be traced."""


class Verdict(StrEnum):
    """Whether a run fits, by the ends of what is not known: the context, and what the allocator reserves."""

    FITS = "fits"
    """Even at the worse end."""
    MAY_NOT_FIT = "may not fit"
    """At the better end alone."""
    DOES_NOT_FIT = "does not fit"
    """Not even at the better end."""


_FORMER_BASES = {"between": Basis.INTERPOLATED, "by": Basis.FORMULA}
"""The first word of a basis in records that were written before it was one of four."""


class Prediction(Figures):
    """What a plan says."""

    basis: Basis | None = None  # how it was made
    basis_note: str | None = None
    """What there is to say of that: between what it lies, or which formula stood in and why."""
    precision: str | None = None
    micro_batch_size: int | None = None
    """Sequences in one forward on one rank."""
    num_micro_batches: int | None = None
    """Forwards on one rank in one step."""
    sequence_length: int | None = None
    """Tokens of the longest sequence."""
    budget_bytes: int | None = None  # what the device has
    device_flops: float | None = None
    """The dense FLOP/s of the device in the precision: of the table, or as this machine's CPU was timed."""
    speed_source: str | None = None
    """Where the figures are from that the time is made of: this machine as it was measured, or the table of cards."""
    context_bytes: int | None = None  # what the driver takes of it for one process
    fits: bool | None = None
    """Whether every request for memory is met, on the device and on the host, if what is not known turns out well."""
    verdict: Verdict | None = None  # how sure that is
    verdict_by: str | None = None
    """The ends of what is not known by which it was found: of the context, and of what the allocator reserves."""
    reason: str | None = None
    """Why it does not fit, or may not."""
    process_low_bytes: int | None = None
    """The least that the process may show at its peak: live tensors, and the smallest context."""
    process_high_bytes: int | None = None
    """The most: what the allocator reserves with the noise of it, and the largest context."""
    returned_bytes: int | None = None  # what the allocator would reserve besides, if the device had no end
    peak_module: str | None = None
    """The module at work at the peak."""
    peak_layer: int | None = None
    """The layer at work at the peak, counted from 0."""
    pinned_bytes: int | None = None
    """The part of the host memory that is locked, on one node."""
    nvme_bytes: int | None = None
    """What is offloaded to the disk, on one node."""
    num_steps: int | None = None
    total_seconds: float | None = None
    """All steps, without loading and evaluation."""
    trunk: TrunkPlan | None = None
    """What is frozen runs once, and the steps run without it; None: it runs in each step."""
    job: JobPlan | None = None
    """The whole job: its steps, and all that is around them."""
    streamed: StreamPlan | None = None
    """What is frozen comes to the device when it runs; None: it stays there."""

    @model_validator(mode="before")
    @classmethod
    def _with_basis(cls, given: Any) -> Any:
        """Read the basis of an earlier record, which was a sentence."""
        basis = given.get("basis") if isinstance(given, dict) else None
        if not isinstance(basis, str) or basis in list(Basis):
            return given
        return given | {"basis": _FORMER_BASES.get(basis.partition(" ")[0]), "basis_note": basis}

    @property
    def found(self) -> str:
        """How it was made, in words."""
        return self.basis_note or (self.basis or "")


class PhaseMeasurement(Record):
    """The peaks of one phase on one rank; a figure that was not taken is None."""

    phase: str
    """`load`, `forward`, `backward`, `optimizer` or `evaluation`."""
    rank: int = 0
    peak_active_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_process_bytes: int | None = None
    host_bytes: int | None = None
    """Resident host memory of this rank's process at its most."""
    peak_breakdown: MemoryBreakdown | None = None
    """The parts of what was counted when most was live."""
    largest_tensors: tuple[LiveTensor, ...] = ()
    """The ten largest then."""


class Measurement(Figures):
    """The figures that a run measured."""

    active_source: str | None = None
    """How `peak_active_bytes` was taken, such as `allocator statistics` or `counted storages`."""
    process_source: str | None = None
    """How `peak_process_bytes` was taken, such as `NVML` or `resident set`."""
    step_seconds_spread: float | None = None
    """The distance between the quartiles of the timed steps."""
    num_timed_steps: int | None = None
    """The steps behind `step_seconds`, warm-up left out."""
    processor_joules: float | None = None  # since the last start, all programs of the first rank's machine (RAPL)
    gpu_joules: float | None = None  # since the last start (NVML)
    phases: tuple[PhaseMeasurement, ...] = ()
    largest_tensors: tuple[LiveTensor, ...] = ()
    """The ten largest at the peak of the rank that has most; the phases have their own."""


class LabelsLine(Record):
    """The labels of a run."""

    kind: Literal["single", "multi", "regression"]
    names: tuple[str, ...]
    """In the order of their numbers; of a number to predict its own."""
    mean: float = 0.0
    deviation: float = 1.0
    """Of numbers to predict: the model gives (number - mean) / deviation."""


class RunLine(Record):
    """The first line: what was asked for, and by what it was run."""

    kind: Literal["run"] = "run"
    schema_version: int = SCHEMA_VERSION
    name: str
    """The result folder's name."""
    started: str
    """ISO 8601, UTC."""
    config: dict[str, Any]
    """The RunConfig, with the learning rate, the precision and the cut that were used."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Package to version."""
    engine: str
    """`plain` or `deepspeed`; `unknown` of a configuration that was refused, `none` of a baseline."""
    zero_stage: int | None = None
    """What ZeRO partitions, 0 under the plain engine; None in a record that does not say it."""
    offload_optimizer: str | None = None
    """Where the optimizer's state lives: `none`, `cpu` or `nvme`."""
    offload_parameters: str | None = None
    """Where the weights live."""
    precision: str
    world_size: int
    device: str
    num_steps: int
    """Planned optimizer steps."""
    resumed_step: int | None = None
    """The step that the run was taken up at, of one that was stopped; the last time, if it was more often."""
    prediction: Prediction | None = None
    labels: LabelsLine | None = None
    """None for a language model, and where no data was read."""
    example: Literal["text", "pair", "chat"] = "text"
    """An example of the data: one text, two of them, or a chat in the tokenizer's template."""
    purpose: Literal["training", "profile", "baseline"] = "training"
    """A baseline has no model, no engine and no settings."""


class StepLine(Record):
    """One logged optimizer step."""

    kind: Literal["step"] = "step"
    step: int
    epoch: float
    loss: float
    """The mean loss over the targets of the step's global batch."""
    learning_rate: float
    grad_norm: float | None
    """Before clipping."""
    step_seconds: float
    tokens_per_second: float
    seconds_left: float | None = None
    """Of the run, from here to its end, as far as can be told."""


class EvaluationLine(Scores):
    """Scores on a split, and when."""

    kind: Literal["evaluation"] = "evaluation"
    step: int
    epoch: float
    split: str
    """`validation` or `test`."""


class TimelineLine(Record):
    """The live bytes of one step on one rank, column by column; point i of every column belongs together."""

    kind: Literal["timeline"] = "timeline"
    step: int
    rank: int = 0
    events: tuple[int, ...]
    """How many storages had been born or had died by then."""
    phases: tuple[str, ...]
    live_bytes: dict[str, tuple[int, ...]]
    """Kind of memory, such as `activation`, to its bytes."""
    window: tuple[tuple[int, ...], ...] = ()  # the layers that the window of a streamed model holds at each point
    largest_tensors: tuple[LiveTensor, ...] = ()
    """The ten largest when most was live."""


class RecoveryLine(Record):
    """Memory ran out in a step, which was taken again with smaller limits."""

    kind: Literal["recovery"] = "recovery"
    step: int  # 0 for the trial before the first step
    reason: str
    """What the allocator said."""
    available_bytes: int | None = None
    """Memory that the process held or could still get then, of the rank with least; None: not known."""
    before: str
    """The limits that were too large, as flags of the command line."""
    after: str
    """The limits from then on."""


class ResultLine(Record):
    """The last line: how it ended."""

    kind: Literal["result"] = "result"
    status: Literal["completed", "stopped early", "interrupted", "failed"]
    reason: str | None = None
    """Why, where it did not complete."""
    failure: Literal["out of memory", "crash", "time limit", "refused"] | None = None
    """What kind of failure, where it failed."""
    num_steps: int  # taken
    limits: str | None = None
    """The cut and the share of recomputing layers at the end, as flags, where memory had run out with larger ones."""
    best_step: int | None = None
    train_seconds: float  # training alone
    total_seconds: float  # loading, training, evaluation, saving
    setup_seconds: float | None = None  # from loaded libraries to the first step, of the last start
    reopened_difference: float | None = None
    """The largest difference of two logits of the saved model, opened anew, from those in memory."""
    measurement: Measurement


AnyLine = RunLine | StepLine | EvaluationLine | TimelineLine | RecoveryLine | ResultLine
LINE: TypeAdapter[AnyLine] = TypeAdapter(Annotated[AnyLine, Field(discriminator="kind")])


class RunRecord(Record):
    """Everything that is known of one run."""

    run: RunLine
    steps: tuple[StepLine, ...] = ()
    evaluations: tuple[EvaluationLine, ...] = ()
    timeline: TimelineLine | None = None
    recoveries: tuple[RecoveryLine, ...] = ()
    result: ResultLine | None = None

    def last_evaluation(self, split: str) -> EvaluationLine | None:
        """Return the newest scores on a split, or None."""
        return next((line for line in reversed(self.evaluations) if line.split == split), None)
