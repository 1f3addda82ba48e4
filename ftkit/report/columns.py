"""The columns of a report: each one's key, heading, value and words, for every format alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftkit.records.schema import EvaluationLine
from ftkit.report import words
from ftkit.report.collect import Run
from ftkit.report.metrics import METRICS
from ftkit.report.words import Value

Group = Literal["configuration", "memory", "speed", "quality"]
Words = Callable[[Value], str]

MEMORY_FIGURES = {
    "peak_active_bytes": ("Peak live", "The most that live tensors took at once, on the rank that took most."),
    "peak_reserved_bytes": ("Peak reserved", "The most that the caching allocator held."),
    "peak_process_bytes": ("Peak process", "The most that the system saw one process take: NVML, or resident memory."),
}
"""Each way to take a peak: its name in tables, and what it means."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: the name in CSV and JSON; the value there is in base units.
        heading: the name in tables.
        group: the columns that it stands among.
        value: a run to its value, None where there is none.
        words: a value to what tables show.
        note: what it means, in a sentence.
        detail: whether it is left out of the tables that are read by eye.
    """

    key: str
    heading: str
    group: Group
    value: Callable[[Run], Value]
    words: Words
    note: str
    detail: bool = False

    def show(self, run: Run) -> str:
        """Return what a table shows for a run: nothing where the value was not taken."""
        value = self.value(run)
        return "" if value is None else self.words(value)

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers, which tables set flush right."""
        return self.words is not words.text


def scores(run: Run) -> EvaluationLine | None:
    """Return the scores that a run is judged by: on the test split, else the last validation."""
    return run.record.last_evaluation("test") or run.record.last_evaluation("validation")


def final_loss(run: Run) -> float | None:
    """Return the last logged training loss."""
    return run.record.steps[-1].loss if run.record.steps else None


def relative_error(run: Run, field: str) -> float | None:
    """Return (predicted - measured) / measured of a figure, None where one of them is missing."""
    predicted, measured = getattr(run.predicted, field), getattr(run.measured, field)
    return (predicted - measured) / measured if predicted is not None and measured else None


def filled_columns(runs: Sequence[Run], detail: bool = False) -> list[Column]:
    """Return the columns that say something about at least one run.

    Args:
        runs: the rows.
        detail: whether to keep the columns that only files carry.

    Returns:
        Columns in reading order.
    """
    return [
        column
        for column in COLUMNS
        if (detail or not column.detail) and any(column.value(run) is not None for run in runs)
    ]


def split_shared(runs: Sequence[Run], columns: Sequence[Column]) -> tuple[list[Column], list[Column]]:
    """Part the columns of the configuration that are the same in every run from those that tell runs apart.

    Args:
        runs: the rows.
        columns: any columns.

    Returns:
        (what differs, with every column that is not configuration; what all runs share, baselines left out that have
        no such setting). One run shares nothing.
    """
    shared = [
        column
        for column in columns
        if len(runs) > 1
        and column.group == "configuration"
        and column.key not in ("name", "status", "method")
        and len({value for run in runs if (value := column.value(run)) or not run.is_baseline}) == 1
    ]
    return [column for column in columns if column not in shared], shared


def _setting(dotted: str) -> Callable[[Run], Value]:
    return lambda run: run.setting(dotted)


def measured(field: str) -> Callable[[Run], Any]:
    """Return what takes a figure from the measurement of a run; None where it was not taken."""
    return lambda run: getattr(run.measured, field)


def scored(field: str) -> Callable[[Run], Any]:
    """Return what takes a figure from the scores that a run is judged by; None where it has none."""
    return lambda run: getattr(scores(run), field, None)


def _ended(field: str) -> Callable[[Run], Value]:
    def value(run: Run) -> Value:
        """Return a figure of the end; nothing was taken of what failed before its first step."""
        result = run.record.result
        if result is None or (result.status == "failed" and not result.num_steps):
            return None
        found: Value = getattr(result, field)
        return found

    return value


def _trio(field: str, heading: str, group: Group, shown: Words, note: str) -> list[Column]:
    """Return the three columns of a figure: predicted, measured, and the error between them."""
    return [
        Column(
            f"predicted_{field}",
            f"{heading}, predicted",
            group,
            lambda run: getattr(run.predicted, field),
            shown,
            f"{note} What the plan said.",
        ),
        Column(field, f"{heading}, measured", group, measured(field), shown, note),
        Column(
            f"{field}_error",
            f"{heading}, error",
            group,
            lambda run: relative_error(run, field),
            words.signed_percent,
            "Predicted less measured, over measured.",
        ),
    ]


_CONFIGURATION = [
    Column("name", "Run", "configuration", lambda run: run.name, words.text, "The result folder."),
    Column("status", "Status", "configuration", lambda run: run.status, words.text, "How it ended."),
    Column("model", "Model", "configuration", _setting("model.name"), words.place, "What was fine-tuned."),
    Column("dataset", "Dataset", "configuration", _setting("data.dataset"), words.place, "What it was tuned on."),
    Column("method", "Method", "configuration", words.method, words.text, "What trains."),
    Column("engine", "Engine", "configuration", words.engine, words.text, "How it was distributed."),
    Column("world_size", "Ranks", "configuration", lambda run: run.record.run.world_size, words.whole, "Processes."),
    Column("device", "Device", "configuration", words.device, words.text, "What computed."),
    Column("precision", "Precision", "configuration", lambda run: run.record.run.precision, words.text, "Arithmetic."),
    Column(
        "recompute", "Recompute", "configuration", words.recompute, words.text,
        "What the layers compute again in the backward pass, in the place of keeping it.",
    ),
    Column(
        "global_batch_size", "Global batch", "configuration", _setting("batch.global_batch_size"), words.whole,
        "Sequences in one optimizer step over all ranks.",
    ),
    Column("micro_batch", "Micro-batch", "configuration", words.cut, words.text, "One forward on one rank."),
    Column("max_length", "Max. length", "configuration", _setting("data.max_length"), words.whole, "Tokens in a text."),
    Column("optimizer", "Optimizer", "configuration", _setting("optimizer.name"), words.text, "The optimizer."),
    Column(
        "learning_rate", "Rate", "configuration", _setting("optimizer.learning_rate"), words.figure,
        "The peak of the learning rate.",
    ),
    Column("seed", "Seed", "configuration", _setting("training.seed"), words.whole, "Decides every draw."),
]  # fmt: skip

_MEMORY = [
    column
    for field, (heading, note) in MEMORY_FIGURES.items()
    for column in _trio(field, heading, "memory", words.size, note)
] + [
    Column("peak_phase", "Peak in", "memory", measured("peak_phase"), words.text, "The phase of the peak."),
    Column("host_bytes", "Host", "memory", measured("host_bytes"), words.size, "Host memory of a node.", True),
    Column("disk_bytes", "Disk", "memory", measured("disk_bytes"), words.size, "What the run left.", True),
    Column(
        "active_source", "Live tensors from", "memory", measured("active_source"), words.text, "How taken.", True
    ),
    Column("process_source", "Process from", "memory", measured("process_source"), words.text, "How taken.", True),
]  # fmt: skip

_SPEED = [
    *_trio("step_seconds", "Step", "speed", words.duration, "The median step; planned over the lengths that were run."),
    Column(
        "step_seconds_spread", "Step spread", "speed", measured("step_seconds_spread"), words.duration,
        "The distance between the quartiles of the timed steps.", True,
    ),
    Column("num_timed_steps", "Timed steps", "speed", measured("num_timed_steps"), words.whole, "Timed.", True),
    Column(
        "tokens_per_second", "Tokens/s", "speed", measured("tokens_per_second"), words.rate,
        "Real tokens, padding left out, of the whole job.",
    ),
    Column("samples_per_second", "Samples/s", "speed", measured("samples_per_second"), words.rate, "Whole job.", True),
    Column(
        "model_flops_utilization", "MFU", "speed", measured("model_flops_utilization"), words.percent,
        "Model FLOPs utilization: the share of the device's peak arithmetic.",
    ),
    Column("train_seconds", "Training", "speed", _ended("train_seconds"), words.duration, "Training alone."),
    Column("total_seconds", "In all", "speed", _ended("total_seconds"), words.duration, "Start to end.", True),
    Column("num_steps", "Steps", "speed", _ended("num_steps"), words.whole, "Optimizer steps taken.", True),
]  # fmt: skip

_QUALITY = [
    Column(
        "num_trainable_parameters", "Trainable", "quality", measured("num_trainable_parameters"), words.count,
        "Trainable parameters.",
    ),
    Column("num_parameters", "Parameters", "quality", measured("num_parameters"), words.count, "All of them.", True),
    Column("final_loss", "Loss", "quality", final_loss, words.score, "The last logged training loss."),
    Column(
        "validation_loss", "Validation loss", "quality",
        lambda run: getattr(run.record.last_evaluation("validation"), "loss", None), words.score, "The last one.",
    ),
    Column("scored_on", "Scored on", "quality", scored("split"), words.text, "The split of the scores.", True),
    Column("accuracy", "Accuracy", "quality", scored("accuracy"), words.score, "On the test split, else validation."),
    Column("exact_match", "Exact match", "quality", scored("exact_match"), words.score, METRICS["exact_match"].note),
    Column(
        "baseline", "Baseline", "quality", scored("baseline"), words.figure,
        "What the best constant answer would get: accuracy, exact match, or RMSE of numbers.",
    ),
    Column("f1_macro", "F1 macro", "quality", scored("f1_macro"), words.score, "The mean over classes."),
    Column("f1_micro", "F1 micro", "quality", scored("f1_micro"), words.score, METRICS["f1_micro"].note),
    Column("f1_weighted", "F1 weighted", "quality", scored("f1_weighted"), words.score, "By class size.", True),
    Column("pearson", "Pearson", "quality", scored("pearson"), words.score, METRICS["pearson"].note),
    Column("spearman", "Spearman", "quality", scored("spearman"), words.score, METRICS["spearman"].note),
    Column("mae", "MAE", "quality", scored("mae"), words.figure, METRICS["mae"].note),
    Column("rmse", "RMSE", "quality", scored("rmse"), words.figure, METRICS["rmse"].note),
    Column("perplexity", "Perplexity", "quality", scored("perplexity"), words.rate, "exp of the mean loss."),
    Column("reason", "Reason", "quality", lambda run: run.reason, words.text, "Why it did not complete."),
]  # fmt: skip

COLUMNS: tuple[Column, ...] = (*_CONFIGURATION, *_MEMORY, *_SPEED, *_QUALITY)
