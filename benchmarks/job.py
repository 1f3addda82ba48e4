"""The work that `benchmarks/beside.py` gives to each program, in a form that any of them can read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RANK, ALPHA, DROPOUT = 8, 16, 0.05
FTKIT = "ftkit"
LLAMAFACTORY, LITGPT, TORCHTUNE = OTHERS = ("llamafactory", "litgpt", "torchtune")
"""Programs that have an interpreter of their own."""


@dataclass(frozen=True)
class Job:
    """The work that every contestant does.

    Attributes:
        task: `sequence-classification` or `causal-lm`.
        model: a folder.
        data: a folder with `train.jsonl` and `test.jsonl`.
        epochs: passes over the training split.
        max_length: tokens after which a text is cut.
        global_batch_size: sequences of an optimizer step.
        learning_rate: the peak of a linear schedule.
        seed: of the data's order, the head and dropout.
        settings: further settings of ftkit, as `--set` takes them.
        method: `lora`, `qlora` or `full`.
    """

    task: str
    model: str
    data: str
    epochs: float
    max_length: int
    global_batch_size: int
    learning_rate: float
    seed: int = 0
    settings: tuple[str, ...] = ()
    method: str = "lora"

    @property
    def micro_batch_size(self) -> int:
        """Sequences of a forward of HF Trainer: 16, or the global batch where that is smaller."""
        return min(16, self.global_batch_size)


def token_ids(job: Job, split: str, tokenizer: Any) -> dict[str, Any]:
    """Return what HF Trainer reads of a split: cut texts, or of a language model blocks of texts that were joined.

    Args:
        job: says where the texts are, and the tokens of a text or a block.
        split: `train` or `test`.
        tokenizer: of transformers.
    """
    lines = [row["text"] for row in texts(job, split)]
    if job.task != "causal-lm":
        return dict(tokenizer(lines, truncation=True, max_length=job.max_length))
    joined = [token for ids in tokenizer(lines)["input_ids"] for token in (*ids, tokenizer.eos_token_id)]
    starts = range(0, len(joined), job.max_length)
    return {"input_ids": [joined[start : start + job.max_length] for start in starts]}


def texts(job: Job, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split."""
    lines = (Path(job.data) / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
