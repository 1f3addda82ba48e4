"""Keep what each example of a split was answered, so that runs are compared pair by pair and mistakes can be read.

Dimension letters: C class, N sequences.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftkit.data.arrays import Labels
from ftkit.data.examples import Examples
from ftkit.machine.disk import replace_text
from ftkit.records.answers import Answers, Shown, answers_file, as_lines
from ftkit.records.schema import EvaluationLine
from ftkit.training.evaluate import Logits
from ftkit.training.results.metrics import answers_of
from ftkit.training.setup import Job

_MOST_SHOWN, _MOST_CHARACTERS = 50, 600


def keep_answers(job: Job, line: EvaluationLine, logits: Logits) -> None:
    """Write the answers to a split into the result folder, in the place of earlier ones.

    Args:
        job: the run; the first rank writes. A language model has no answers to keep.
        line: the evaluation.
        logits: float32 [N, C] that it was taken of.
    """
    examples, labels = job.data.examples.get(line.split), job.data.labels
    if not job.process.is_main or examples is None or labels is None or logits is None:
        return
    split = job.data.validation if line.split == "validation" else job.data.test
    assert split is not None
    path = answers_file(job.folder, line.split)
    path.parent.mkdir(exist_ok=True)
    replace_text(path, as_lines(answers_to(examples, split.labels, labels, logits, line)))


def answers_to(
    examples: Examples, true: NDArray[Any], labels: Labels, logits: NDArray[np.float32], line: EvaluationLine
) -> Answers:
    """Return the answers that logits stand for, with the texts of the mistakes that are the most confident.

    Args:
        examples: the texts.
        true: the labels as they were trained.
        labels: their kind and names.
        logits: [N, C].
        line: the evaluation.
    """
    answered, shares = answers_of(logits, labels), probabilities_of(logits, labels)
    true = labels.standard.restored(true) if labels.kind == "regression" else true
    return Answers(
        split=line.split,
        step=line.step,
        kind=labels.kind,
        names=labels.names,
        texts=examples.hashes(),
        labels=true,
        answers=answered,
        probabilities=shares,
        shown={
            place: Shown(" / ".join(examples.texts(place))[:_MOST_CHARACTERS], examples.where(place))
            for place in _worst(true, answered, shares).tolist()
        },
    )


def probabilities_of(logits: NDArray[np.float32], labels: Labels) -> NDArray[np.float64] | None:
    """Return the probability of each class, of each label by itself where a text has several; None of numbers.

    Args:
        logits: [N, C].
        labels: their kind.

    Returns:
        float64 [N, C].
    """
    wide = logits.astype(np.float64)
    if labels.kind == "regression":
        return None
    if labels.kind == "multi":
        return np.asarray(np.exp(-np.logaddexp(0.0, -wide)))
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _worst(true: NDArray[Any], answered: NDArray[Any], shares: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Return the places of the mistakes by how sure they were, of numbers by how far off."""
    if shares is None:
        missed = np.abs(answered - true)
    elif true.ndim == 1:
        missed = np.where(answered != true, shares.max(axis=1), 0.0)
    else:
        missed = np.where(answered != true, np.maximum(shares, 1 - shares), 0.0).max(axis=1)
    worst = np.argsort(-missed, kind="stable")[:_MOST_SHOWN]
    return np.asarray(worst[missed[worst] > 0])
