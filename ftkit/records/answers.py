"""The answers of a run: what each example of a split was answered, as JSON lines.

The first line says what the labels are; each further line is an example, in the order of the split:

    {"split": "test", "step": 40, "kind": "single", "names": ["ham", "spam"]}
    {"text": "9f86d081884c7d65", "label": 1, "answer": 0, "probabilities": [0.75, 0.25]}

A label and an answer are the number of a class, a list of 0 and 1, or a number in the data's units. `text` is a hash,
by which runs are compared example by example; only the most confident mistakes bring the text itself along.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ftkit.errors import DataError

FOLDER = "answers"


@dataclass(frozen=True)
class Shown:
    """The text of a mistake.

    Attributes:
        text: its beginning.
        where: the file and the row in it.
    """

    text: str
    where: str


@dataclass(frozen=True)
class Answers:
    """The answers to a split of N examples.

    Attributes:
        split: `validation` or `test`.
        step: the optimizer step behind which the split was scored.
        kind: what a label is.
        names: the names of the C labels.
        texts: 16 hexadecimal digits for each example: equal texts, equal digits.
        labels: int64 [N]; of several labels a text int8 [N, C] of 0 and 1; numbers float64 [N].
        answers: as `labels`.
        probabilities: float64 [N, C]; None of numbers.
        shown: place of a mistake to its text.
    """

    split: str
    step: int
    kind: Literal["single", "multi", "regression"]
    names: tuple[str, ...]
    texts: tuple[str, ...]
    labels: NDArray[Any]
    answers: NDArray[Any]
    probabilities: NDArray[np.float64] | None
    shown: dict[int, Shown]

    def __len__(self) -> int:
        """Return N."""
        return len(self.texts)

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """Whether each example is answered as it is labelled, wholly where it has several labels, [N]."""
        equal = self.labels == self.answers
        return np.asarray(equal.all(axis=1) if equal.ndim == 2 else equal)


def answers_file(folder: Path, split: str) -> Path:
    """Return the file of the answers to a split in a result folder."""
    return folder / FOLDER / f"{split}.jsonl"


def as_lines(answers: Answers) -> str:
    """Return answers as the content of their file; every number is written such that it is read back exactly."""
    head = {"split": answers.split, "step": answers.step, "kind": answers.kind, "names": answers.names}
    columns: dict[str, list[Any]] = {
        "text": list(answers.texts),
        "label": answers.labels.tolist(),
        "answer": answers.answers.tolist(),
    }
    if answers.probabilities is not None:
        columns["probabilities"] = answers.probabilities.tolist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for place, shown in answers.shown.items():
        rows[place]["shown"] = asdict(shown)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (head, *rows))


def read_answers(path: Path) -> Answers:
    """Read a file of answers.

    Args:
        path: what `answers_file` returned.

    Returns:
        The answers.

    Raises:
        DataError: it cannot be read, or is not whole.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # not splitlines: U+2028 may be in a text
        head, *rows = map(json.loads, lines)
        labels, given = ([row[key] for row in rows] for key in ("label", "answer"))
        dtype = {"single": np.int64, "multi": np.int8, "regression": np.float64}[head["kind"]]
        has_shares = head["kind"] != "regression"
        return Answers(
            split=head["split"],
            step=head["step"],
            kind=head["kind"],
            names=tuple(head["names"]),
            texts=tuple(row["text"] for row in rows),
            labels=np.array(labels, dtype=dtype),
            answers=np.array(given, dtype=dtype),
            probabilities=np.array([row["probabilities"] for row in rows], np.float64) if has_shares else None,
            shown={place: Shown(**row["shown"]) for place, row in enumerate(rows) if "shown" in row},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged or of another version"
        raise DataError(
            f"cannot read the answers in {path}: {reason}; score the run anew, or move the file away"
        ) from None
