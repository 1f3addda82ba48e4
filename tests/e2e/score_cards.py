"""Score results by the programs of their model cards, in a process that has not trained them.

Prints one JSON object: folder to the loss on its test split, computed with nothing but what the card's program made.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import bitsandbytes.nn.modules
import numpy as np
import torch

from ftkit.config.files import load_config
from ftkit.data.batching import Padding, collate
from ftkit.data.prepare import prepare_data
from ftkit.models.objective import objective_of


def score(folder: Path) -> float:
    """Return the loss on the test split by the program of a card."""
    program = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(program, names)  # which uses the model once, too
    packed = [one for one in names["model"].modules() if hasattr(one, "support_avx512bf16_for_cpu")]
    if "dora-true" in folder.name:
        assert packed
        assert not any(one.support_avx512bf16_for_cpu for one in packed)
    return loss_of(names["model"], names["tokenizer"], folder)


def loss_of(model: Any, tokenizer: Any, folder: Path) -> float:
    """Return the mean loss over the targets of a run's test split."""
    config = load_config(folder / "config.yaml")
    objective = objective_of(config, model.config, model)
    own = None
    if config.task == "sequence-classification":
        own = tuple(model.config.id2label[number] for number in range(model.config.num_labels))
    test = prepare_data(config.data, config.task, tokenizer, 0, own).test
    assert test is not None
    batch = collate(test, np.arange(len(test)), Padding(tokenizer.pad_token_id), torch.device("cpu"))
    with torch.no_grad():
        total = objective.score(model.eval()(**batch.inputs()).logits, batch.labels)
    return float(total) / float(objective.target_weights(test).sum())


def main() -> None:
    """Score the folders that are named."""
    # As on a CPU with AVX-512 bf16, where bitsandbytes packs weights anew at their first use in evaluation.
    vars(bitsandbytes.nn.modules)["has_avx512bf16"] = lambda: "dora-true" in str(Path.cwd())
    found = {}
    for name in sys.argv[1:]:
        os.chdir(name)
        with contextlib.redirect_stdout(io.StringIO()):
            found[name] = score(Path(name))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
