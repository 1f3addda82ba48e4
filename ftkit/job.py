"""A run that is ready to train, who is told of it, and where it stands."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from ftkit import checkpoint, results
from ftkit.batching import GlobalBatch, check_cut, count_steps
from ftkit.config import RunConfig
from ftkit.data import PreparedData, TokenSplit, prepare_data
from ftkit.distributed import ProcessContext, first_decides, resolve_precision
from ftkit.engine import Engine, build_engine, wants_deepspeed
from ftkit.gguf import as_safetensors
from ftkit.meter import Meter, MeteredEngine
from ftkit.model import build_model, check_positions, count_parameters, trainable_parameters
from ftkit.plan.first import plan_first
from ftkit.plan.shapes import Sequences
from ftkit.records import (
    EvaluationLine,
    Prediction,
    RunLine,
    RunRecord,
    StepLine,
)
from ftkit.source import load_config, load_tokenizer, own_label_names, resolve_source

_WARMUP_WARNING = 1 / 3


class Reporter(Protocol):
    """Who is told what happens, on the first rank."""

    def note(self, text: str) -> None:
        """Say something."""

    def start(self, run: RunLine, folder: Path) -> None:
        """Training begins."""

    def advance(self, step: int) -> None:
        """A step was taken; its figures have not been read."""

    def step(self, line: StepLine, peak_bytes: int | None) -> None:
        """A step was logged."""

    def evaluation(self, line: EvaluationLine) -> None:
        """A split was scored."""

    def finish(self, record: RunRecord, folder: Path) -> None:
        """The run is over."""


@dataclass(frozen=True)
class Job:
    """A run that is ready to train."""

    config: RunConfig
    process: ProcessContext
    folder: Path
    tokenizer: Any
    data: PreparedData
    engine: Engine
    num_steps: int
    num_parameters: int
    num_trainable_parameters: int
    meter: Meter
    prediction: Prediction | None

    @property
    def num_labels(self) -> int | None:
        """Classes, or None for causal-lm."""
        return None if self.data.label_names is None else len(self.data.label_names)

    def state(self, progress: "Progress") -> checkpoint.TrainingState:
        """Return what a checkpoint says of this run."""
        return checkpoint.TrainingState(
            step=progress.step,
            num_steps=self.num_steps,
            fingerprint=self.data.fingerprint,
            config=checkpoint.resumable_part(self.config.model_dump(mode="json")),
            best_value=progress.best_value,
            best_step=progress.best_step,
            num_without_improvement=progress.num_without_improvement,
            train_seconds=progress.train_seconds,
        )


@dataclass
class Progress:
    """Where a run stands; the only thing here that changes."""

    step: int = 0
    epoch: float = 0.0
    best_value: float | None = None
    best_step: int | None = None
    num_without_improvement: int = 0
    train_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_samples: int = 0

    def speed(self) -> dict[str, Any]:
        """Return the figures of a `Measurement` that time gives; none of a run that had no step left to take."""
        seconds, timed = sum(self.step_seconds), self.step_seconds
        if not timed:
            return {}
        return {
            "step_seconds": float(np.median(timed)),
            "step_seconds_spread": float(np.subtract(*np.percentile(timed, [75, 25]))),
            "num_timed_steps": len(timed),
            "tokens_per_second": self.num_tokens / seconds,
            "samples_per_second": self.num_samples / seconds,
        }


class Window:
    """The steps since the last line of the log: their time and their tokens."""

    def __init__(self) -> None:
        """Start at this moment."""
        self._begin()

    def _begin(self) -> None:
        self.started, self.num_steps, self.num_tokens, self.num_samples = time.perf_counter(), 0, 0, 0

    def add(self, split: TokenSplit, batch: GlobalBatch) -> None:
        """Count a step."""
        self.num_steps += 1
        self.num_tokens += int(split.lengths[batch.indices].sum())
        self.num_samples += len(batch.indices)

    def close(self, progress: Progress) -> tuple[float, float]:
        """Add what passed to the progress; return seconds per step and tokens per second."""
        seconds = time.perf_counter() - self.started
        progress.train_seconds += seconds
        progress.step_seconds += [seconds / self.num_steps] * self.num_steps
        progress.num_tokens += self.num_tokens
        progress.num_samples += self.num_samples
        rates = seconds / self.num_steps, self.num_tokens / seconds
        self._begin()
        return rates


def prepare(config: RunConfig, process: ProcessContext, reporter: Reporter, *, resume: bool = False) -> Job:
    """Load data and model and put them onto the engine; raises as `train_run` does."""
    note = reporter.note if process.is_main else _silent
    dtype = resolve_precision(config.model.precision, process.device)
    source = as_safetensors(resolve_source(config.model, config.task), note)
    meter = Meter(process.device)
    tokenizer = load_tokenizer(source)
    own_labels = own_label_names(source) if config.task == "sequence-classification" else None
    data = prepare_data(config.data, config.task, tokenizer, config.training.seed, own_labels)
    for line in data.report.lines():
        note(line)
    longest = int(max(split.lengths.max() for split in _splits(data)))
    architecture = load_config(source, data.label_names, tokenizer.pad_token_id)
    sequences = Sequences(
        len(data.train), longest, are_equal=all(split.lengths.min() == longest for split in _splits(data))
    )
    config, prediction = plan_first(config, process, architecture, sequences, note)
    check_cut(config.batch, longest)
    training = config.training
    num_steps = count_steps(len(data.train), config.batch.global_batch_size, training.epochs, training.max_steps)
    num_warmup = config.schedule.num_warmup_steps(num_steps)
    if num_warmup > _WARMUP_WARNING * num_steps:
        note(f"warning: {num_warmup} of {num_steps} steps warm up, more than a third; the peak rate is hardly used")
    folder = first_decides(process, lambda: results.open_folder(config, is_resumed=resume))
    model = build_model(config, source, architecture, dtype)
    check_positions(model, longest)
    counts = count_parameters(model), sum(one.numel() for one in trainable_parameters(model).values())
    if wants_deepspeed(config, process):
        note("starting DeepSpeed; the first time, it compiles for a minute or more (offload: for up to five)")
    engine = cast(Engine, MeteredEngine(build_engine(config, model, process, dtype), meter))
    return Job(config, process, folder, tokenizer, data, engine, num_steps, *counts, meter, prediction)


def _splits(data: PreparedData) -> Iterator[TokenSplit]:
    yield from (split for split in (data.train, data.validation, data.test) if split is not None)


def _silent(text: str) -> None:
    """Say nothing: not the first rank."""
