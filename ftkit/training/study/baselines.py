"""The rows that every method has to beat: the answer that is always the same, and words without a language model.

Both see the training split alone, and answer the very texts that the runs beside them are scored on.

Dimension letters: N sequences, C classes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ftkit.config.paths import with_absolute_paths
from ftkit.config.tree import RunConfig
from ftkit.data.arrays import Labels, PreparedData, TokenSplit
from ftkit.data.examples import Examples
from ftkit.data.prepare import prepare_data
from ftkit.errors import ConfigError
from ftkit.machine.disk import replace_text
from ftkit.machine.kept_arrays import kept_tokens
from ftkit.machine.versions import versions
from ftkit.models.logistic import PENALTIES, Linear, Problem, best
from ftkit.models.sources.source import load_tokenizer, resolve_source
from ftkit.models.sources.start import kept_label_names, settle_start
from ftkit.records.answers import answers_file, as_lines
from ftkit.records.files import RECORD
from ftkit.records.schema import EvaluationLine, LabelsLine, Measurement, ResultLine, RunLine
from ftkit.training.answers import answers_to
from ftkit.training.logistic import best_in_folds
from ftkit.training.results.metrics import figures_of
from ftkit.training.study.words import Terms, WordProblem

CONSTANT, WORDS = "always the same", "TF-IDF"
"""What the two baselines are called in the place of a method."""
FOLDERS = {CONSTANT: "baseline-constant", WORDS: "baseline-tf-idf"}
_FLAT = 1e-6
"""Of a gradient: answers do not change any more, and it takes a fraction of the time."""
_NEVER = 0.5
"""Texts that a class without a text counts as, so that its logit is finite."""


class NoBaselineError(ConfigError):
    """A run whose answers no baseline gives."""


@dataclass(frozen=True)
class Baseline:
    """A baseline that has seen the training split.

    Attributes:
        name: `CONSTANT` or `WORDS`.
        num_parameters: how many numbers it learned.
        answer: texts to logits, float32 [N, C].
    """

    name: str
    num_parameters: int
    answer: Callable[[list[str]], NDArray[np.float32]]


def write_baselines(config: RunConfig, folder: Path, note: Callable[[str], None]) -> None:
    """Score the baselines on the splits of a run, and leave each in a folder as a run leaves its record and answers.

    Args:
        config: the run.
        folder: gets a folder for each baseline; what an earlier call left is replaced.
        note: told what happens.

    Raises:
        NoBaselineError: the run is not one of classes or labels.
        FtkitError: as `prepare_data`.
    """
    config = with_absolute_paths(config)  # as a run names its data
    data = _prepared(config) if config.task == "sequence-classification" else None
    labels = None if data is None else data.labels
    if data is None or labels is None or labels.kind == "regression":
        raise NoBaselineError("they answer with classes and labels, not with numbers or with tokens")
    texts, own = _texts(data.examples["train"]), data.train.labels
    for fit in (_constant, _words):
        begun, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
        baseline = fit(texts, own, labels, data, config.training.seed)
        place = folder / FOLDERS[baseline.name]
        lines = list(_scored(baseline, data, labels, place))
        seconds = time.perf_counter() - begun
        head = _head(config, baseline, labels, started, place)
        measured = Measurement(device="cpu", num_trainable_parameters=baseline.num_parameters)
        end = ResultLine(
            status="completed", num_steps=0, train_seconds=seconds, total_seconds=seconds, measurement=measured
        )
        replace_text(place / RECORD, "".join(line.model_dump_json() + "\n" for line in (head, *lines, end)))
        figures = f"accuracy {lines[-1].accuracy:.4f}" if labels.kind == "single" else f"F1 {lines[-1].f1_macro:.4f}"
        note(f"baseline {baseline.name}: {lines[-1].split} {figures}")


def _prepared(config: RunConfig) -> PreparedData:
    """Read the data as the run reads it; the texts of the training split are kept too."""
    source = resolve_source(config.model, config.task)
    tokenizer = load_tokenizer(source)
    config = settle_start(config, source, tokenizer)
    names = kept_label_names(config, source)
    store = kept_tokens(config.cache)
    return prepare_data(config.data, config.task, tokenizer, config.data_seed, names, may_lack_labels=True, store=store)


def _texts(examples: Examples) -> list[str]:
    return [examples.joined(place) for place in range(len(examples))]


def _constant(
    texts: list[str],
    own: NDArray[Any],
    labels: Labels,
    data: PreparedData,  # noqa: ARG001  # as `_words`
    seed: int,  # noqa: ARG001  # as `_words`
) -> Baseline:
    """Answer each text with the shares of the training split, of which the largest class is the answer."""
    if labels.kind == "single":
        counts = np.maximum(np.bincount(own, minlength=len(labels.names)), _NEVER)
        logits = np.log(counts / counts.sum())
    else:
        counts = np.clip(own.sum(axis=0, dtype=np.float64), _NEVER, len(texts) - _NEVER)
        logits = np.log(counts / (len(texts) - counts))
    row = logits.astype(np.float32)
    return Baseline(CONSTANT, len(row), lambda asked: np.tile(row, (len(asked), 1)))


def _words(texts: list[str], own: NDArray[Any], labels: Labels, data: PreparedData, seed: int) -> Baseline:
    """Fit logistic regression to words and pairs of words, under the penalty that serves validation best."""
    terms = Terms.of(texts)
    by_words = WordProblem(texts, _as_targets(own, labels), len(labels.names))
    problem = by_words.whole(terms)
    if data.validation is None:
        found = best_in_folds(problem, by_words.apart, seed, PENALTIES[::2], _FLAT)
    else:
        unseen = terms.vectors(_texts(data.examples["validation"]))
        on_validation = Problem(unseen, _as_targets(data.validation.labels, labels), len(labels.names))

        def loss_of(layer: Linear) -> float:
            return float(on_validation.loss(layer.logits(unseen)))

        found = best(problem, loss_of, PENALTIES[::2], _FLAT)
    num_parameters = found.weight_CD.numel() + len(labels.names)
    return Baseline(WORDS, num_parameters, lambda asked: found.logits(terms.vectors(asked)).float().numpy())


def _as_targets(own: NDArray[Any], labels: Labels) -> torch.Tensor:
    return torch.from_numpy(own.astype(np.float64 if labels.kind == "multi" else np.int64))


def _scored(baseline: Baseline, data: PreparedData, labels: Labels, place: Path) -> Iterator[EvaluationLine]:
    """Score a baseline on validation and test, and keep its answers."""
    for name in ("validation", "test"):
        split: TokenSplit | None = getattr(data, name)
        if split is None:
            continue
        begun, examples = time.perf_counter(), data.examples[name]
        logits = baseline.answer(_texts(examples))
        loss = Problem(torch.empty(0), _as_targets(split.labels, labels), len(labels.names)).loss(
            torch.from_numpy(logits).double()
        )
        line = EvaluationLine(
            step=0,
            epoch=0.0,
            split=name,
            loss=float(loss),
            num_samples=split.num_texts,
            seconds=time.perf_counter() - begun,
            **figures_of(logits, split.labels, labels),
        )
        path = answers_file(place, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, as_lines(answers_to(examples, split.labels, labels, logits, line)))
        yield line


def _head(config: RunConfig, baseline: Baseline, labels: Labels, started: str, place: Path) -> RunLine:
    """Return the first line of a record, which names no setting that a baseline does not have."""
    return RunLine(
        name=place.name,
        started=started,
        config={
            "task": config.task,
            "data": {"dataset": config.data.dataset},
            "method": {"name": baseline.name},
        },
        versions=versions(),
        engine="none",
        precision="",
        world_size=1,
        device="cpu",
        num_steps=0,
        labels=LabelsLine(kind=labels.kind, names=labels.names),
        purpose="baseline",
    )
