"""Runs of tiny models, one of each method for each kind of labels, trained once when they are first asked for."""

import json

import numpy as np
import pytest

from ftkit.config.files import load_config
from ftkit.machine.process import ProcessContext
from ftkit.training.loop import train_run
from tests.helpers import WORDS, Notes, save_tiny_model

KINDS = {
    "single": lambda words: "good" if "good" in words else "bad" if "bad" in words else "neither",
    "multi": lambda words: [name for name in ("film", "good", "plot") if name in words],
    "regression": lambda words: 20.25 + 3 * ("good" in words) - 4 * ("bad" in words) + len(words) / 2,
}
SPLITS = {"train": 24, "validation": 12, "test": 16}


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """A folder of tiny models, and of data for every kind of labels."""
    folder, random = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    for family in ("bert", "gpt2"):
        save_tiny_model(folder / family, family)
    for split, size in SPLITS.items():
        rows = [random.choice(WORDS, size=random.integers(2, 9)).tolist() for _ in range(size)]
        for kind in (*KINDS, "causal-lm"):
            (folder / kind).mkdir(exist_ok=True)
            label = KINDS.get(kind, lambda _: "unread")
            lines = [json.dumps({"text": " ".join(words), "label": label(words)}) for words in rows]
            (folder / kind / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def trained(work):
    """Return the folder and the record of a run, trained when it is first asked for; its longer texts are cut."""
    done = {}

    def train(kind, method):
        if (kind, method) not in done:
            folder = work / f"run-{kind}-{method}"
            task = "causal-lm" if kind == "causal-lm" else "sequence-classification"
            settings = [
                *(f"task={task}", f"method.name={method}", f"model.name={work / ('gpt2' if kind == task else 'bert')}"),
                *(f"data.dataset={work / kind}", "data.max_length=6", f"output.folder={folder}", "output.reopen=false"),
                *("training.max_steps=4", "training.eval_every=2", "training.plan_first=false"),
                *("batch.global_batch_size=8", "model.precision=fp32", "optimizer.learning_rate=0.01"),
                # What the frozen layers made once has the last bits of other micro-batches: it is equal up to rounding.
                "cache.trunk=off",
                *(["data.standardize_targets=true"] if kind == "regression" else []),
            ]
            done[kind, method] = folder, train_run(load_config(settings=settings), ProcessContext(), Notes())
        return done[kind, method]

    return train
