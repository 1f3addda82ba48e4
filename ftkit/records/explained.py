"""The grounds of a plan, in base units: kernels, types, the tensors at the peak, and changes that would lower it."""

from typing import Any

from pydantic import Field

from ftkit.records.figures import Record
from ftkit.records.schema import Verdict


class Attention(Record):
    """The attention of some layers of a model."""

    layers: tuple[int, ...]
    """Counted from 0."""
    kernel: str
    """As torch calls it; `plain` where the code multiplies itself, and `none` where no attention is seen."""
    call: str
    """The facts that decide it."""
    passed_over: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The kernels that torch asks before it, and why each refuses."""


class PartTypes(Record):
    """The types of a part of a run, such as its masters."""

    part: str
    num_bytes: dict[str, int]
    """Type, such as `bfloat16`, to the bytes that were made of it; an empty name: one piece of several tensors."""


class Logits(Record):
    """The largest piece of logits that is made at once."""

    shape: tuple[int, ...]
    dtype: str
    is_whole: bool
    """Whether it has all rows of the micro-batch."""


class LiveGroup(Record):
    """Storages of one place in the model, in all layers alike, that live at the peak."""

    kind: str
    """As of a `LiveTensor`."""
    module: str
    """Its path, with `*` for a number; empty for what a backward makes, or an engine."""
    op: str
    """The operator that made it; empty for what was there before."""
    shape: tuple[int, ...]
    dtype: str
    is_recomputed: bool
    """Whether a forward made it that ran again in the backward."""
    num_bytes: int
    num_tensors: int
    num_layers: int
    """0 outside the layers."""


class Knob(Record):
    """One change, and what it does to the peak."""

    flags: str
    """For the command line."""
    changes: dict[str, Any]
    """Key of the configuration to its value."""
    saved_bytes: int
    """Of the process at its peak."""
    peak_process_bytes: int
    verdict: Verdict
    step_seconds: float | None
    """None where a formula stands in."""


class Explanation(Record):
    """The grounds of a plan."""

    batch: str
    """The micro-batch that is planned."""
    attention: tuple[Attention, ...]
    parts: tuple[PartTypes, ...]
    logits: Logits | None
    """None: no result is as wide as the vocabulary, or the labels."""
    peak: str
    """The moment of the peak."""
    peak_active_bytes: int
    live: tuple[LiveGroup, ...]
    """All groups that live then, the largest first."""
    context: str
    """Which end of its range is counted, and where that is from; empty on a CPU."""
    context_low_bytes: int
    context_high_bytes: int
    allocator: str
    """How memory is reserved."""
    messages: str
    """What the ranks send each other in a step, and how long that takes by which figures; empty for one rank."""
    experts: str
    """How the peak of a mixture of experts depends on its routing; empty of another model."""
    frozen: tuple[str, ...]
    """Of adapters: what stays whole beside weights in 4 bits, and that no expert has one."""
    reserved_bytes: int | None
    cut: str
    """The flag that cuts the batch as it is planned; a change that has no cut of its own is made beside it."""
    knobs: tuple[Knob, ...]
    """Single changes that lower the peak, of those that a search may make; the largest saving first."""
    versions: dict[str, str]
    """Of what was traced."""
