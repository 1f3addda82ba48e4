"""Study a dataset by the features of a frozen trunk: cross-validation, a learning curve, labels that may be wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ftkit.config.tree import RunConfig
from ftkit.data.examples import Examples
from ftkit.data.prepare import prepare_data
from ftkit.errors import ConfigError, DataError, ModelError
from ftkit.machine.kept_arrays import kept_tokens
from ftkit.machine.process import ProcessContext
from ftkit.models.sources.start import kept_label_names
from ftkit.records.study import Contestant, CurvePoint, StudyRecord, Suspect
from ftkit.report.significance import bootstrap
from ftkit.training.logistic import features_of
from ftkit.training.reporters import Reporter
from ftkit.training.setup import Job, prepare
from ftkit.training.study.folds import as_problem, draw_folds, learning_curve, out_of_fold
from ftkit.training.study.words import WordProblem
from ftkit.training.study.wrong_labels import find_wrong

_FOR_CLASSES = "ftkit study features is for texts with one class each; leave out --task or data.label_kind"
_LONGEST = 500
"""Characters of a text that a list shows."""


@dataclass(frozen=True)
class Pool:
    """All labelled texts of a dataset, whatever split they are in.

    Attributes:
        features: what the trunk makes of each, [N, D].
        labels: classes, [N].
        names: of the classes.
        texts: [N]; a pair's two, one below the other.
        where: each stands, [N].
        groups: [N]; None where no column groups them.
    """

    features: torch.Tensor
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    texts: list[str]
    where: list[str]
    groups: NDArray[np.int64] | None


def study_features(config: RunConfig, num_folds: int, reporter: Reporter) -> StudyRecord:
    """Study the texts of a configuration.

    Args:
        config: feature extraction of classes.
        num_folds: of the cross-validation.
        reporter: told what happens.

    Returns:
        What was found.

    Raises:
        FtkitError: naming what was given, what was wanted and what to try.
    """
    if config.task != "sequence-classification":
        raise ConfigError(_FOR_CLASSES)
    job = prepare(config, ProcessContext(), reporter)
    pool = _pool(job)
    seed = job.config.training.seed
    folds = draw_folds(pool.labels, num_folds, seed, pool.groups)
    fewest = np.bincount(pool.labels, minlength=len(pool.names)).min()
    if fewest < num_folds:
        raise DataError(f"a class has {fewest} texts, and there are {num_folds} folds; give fewer with --folds")
    problem = as_problem(pool.features, pool.labels, len(pool.names))
    reporter.note(f"cross-validation of {len(pool.labels):,} texts in {num_folds} folds")
    found = out_of_fold(problem.apart, folds)
    reporter.note("baselines: the largest class, and TF-IDF of words and pairs of words")
    by_words = WordProblem(pool.texts, problem.labels, len(pool.names))
    words = out_of_fold(by_words.apart, folds)
    largest = np.array([np.bincount(pool.labels[folds != fold]).argmax() for fold in range(num_folds)])[folds]
    reporter.note("learning curve")
    curve = learning_curve(problem, folds, found.penalty, seed)
    return StudyRecord(
        model=config.model.name,
        dataset=config.data.dataset,
        num_sequences=len(pool.labels),
        num_folds=num_folds,
        grouped_by="group" if pool.groups is not None else None,
        contestants=(
            _contestant("features", found.probabilities_NC.argmax(axis=1), pool.labels, folds, found.penalty),
            _contestant("TF-IDF", words.probabilities_NC.argmax(axis=1), pool.labels, folds, words.penalty),
            _contestant("largest class", largest, pool.labels, folds),
        ),
        curve=tuple(
            CurvePoint(num_sequences=size, accuracy=float(right.mean()), spread=float(right.std(ddof=1)))
            for size, right in curve
        ),
        suspects=tuple(_suspects(pool, found.probabilities_NC)),
    )


def _pool(job: Job) -> Pool:
    """Collect the texts of all splits, with their features."""
    data, config = job.data, job.config
    if data.labels is None or data.labels.kind != "single":
        raise ConfigError(_FOR_CLASSES)
    splits = data.named
    if not all(split.hidden is not None and split.hidden.is_pooled for split in splits.values()):
        raise ModelError("this model's head looks at more than one vector of a text; choose another model")
    # A training keeps the texts of validation and test alone.
    again = prepare_data(
        config.data,
        config.task,
        job.tokenizer,
        config.data_seed,
        kept_label_names(config, job.source),
        may_lack_labels=True,
        store=kept_tokens(config.cache),
    )
    assert again.fingerprint == data.fingerprint
    examples = [again.examples[name] for name in splits]
    return Pool(
        torch.cat([features_of(split) for split in splits.values()]),
        np.concatenate([split.labels for split in splits.values()]),
        data.labels.names,
        [one.joined(place) for one in examples for place in range(len(one))],
        [
            f"{name}: {one.where(place)}"
            for name, one in zip(splits, examples, strict=True)
            for place in range(len(one))
        ],
        _groups(examples),
    )


def _groups(examples: Sequence[Examples]) -> NDArray[np.int64] | None:
    """Return the group of each text as a number, [N]; None where no column groups them."""
    if not all("group" in one.rows.column_names for one in examples):
        return None
    names = [str(value) for one in examples for value in one.rows["group"].to_pylist()]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _contestant(
    name: str,
    answers: NDArray[np.int64],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    penalty: float | None = None,
) -> Contestant:
    right = (answers == labels).astype(np.float64)
    low, high = bootstrap(right)
    each = tuple(float(right[folds == fold].mean()) for fold in np.unique(folds))
    return Contestant(name=name, accuracy=float(right.mean()), low=low, high=high, folds=each, penalty=penalty)


def _suspects(pool: Pool, probabilities: NDArray[np.float64]) -> list[Suspect]:
    found = find_wrong(probabilities, pool.labels)
    return [
        Suspect(
            where=pool.where[place],
            text=pool.texts[place][:_LONGEST],
            label=pool.names[pool.labels[place]],
            suggested=pool.names[suggested],
            label_probability=float(probabilities[place, pool.labels[place]]),
            suggested_probability=float(probabilities[place, suggested]),
        )
        for place, suggested in zip(found.places, found.suggested, strict=True)
    ]
