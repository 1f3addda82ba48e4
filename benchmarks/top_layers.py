"""LoRA on the top half of the layers from the cache beside PEFT with the same layers in HF Trainer, in turns.

    python -m benchmarks.top_layers --rounds 1 --samples 600

Both get the movie reviews as ftkit split and tokenized them, fp32, five epochs in steps of 32 sequences, rank 8 beside
all linear layers of layers 3 to 5 of MiniLM, and a validation after each epoch. Times are of whole processes. Peaks are
of live tensors in one step of the 32 longest reviews, counted by the same recorder in both: ftkit's own figure with
micro-batches of 512 tokens as it chooses them, and again with all 32 sequences at once, which is what HF Trainer does.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.feature_extraction import finished, loaded, of_record, trained

EPOCHS, STEP, RANK, TOP = 5, 32, 8, 3
SETTINGS = ["method.name=lora", f"method.rank={RANK}", f"method.top_layers={TOP}", f"training.epochs={EPOCHS}"]
SETTINGS += [f"batch.global_batch_size={STEP}", "model.precision=fp32", "data.max_length=128"]


def main() -> None:
    """Run both in turns, and print every time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--way", choices=("trainer", "peaks"))
    asked = parser.parse_args()
    settings = [*SETTINGS, f"data.max_train_samples={asked.samples}"]
    if asked.way:
        print(json.dumps({"trainer": trainer, "peaks": peaks}[asked.way](settings)))
        return
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for way in ("trainer", "cold", "warm"):
                print(way, json.dumps(timed(way, settings, asked.samples, Path(folder))), flush=True)
    print("peaks", json.dumps(peaks(settings)))


def timed(way: str, settings: list[str], samples: int, folder: Path) -> dict[str, Any]:
    """Run a way in a process of its own; return its seconds, and the accuracy that it reached."""
    own = [sys.executable, "-m", "benchmarks.top_layers", "--samples", str(samples), "--way", way]
    ours = [sys.executable, "-m", "ftkit", "train", "--output", str(folder / way)]
    ours += ["--set", "data.split_seed=0", *(f"--set={setting}" for setting in settings)]
    printed, seconds = finished(own if way == "trainer" else ours, folder)
    if way == "trainer":
        return dict(json.loads(printed.splitlines()[-1]), seconds=seconds)
    return of_record(folder / way, printed) | {"seconds": seconds}


def adapted(settings: list[str]) -> tuple[Any, Any, Any]:
    """Return the data, the plain model with PEFT's adapters in its top layers, and the tokenizer."""
    import peft

    others = [one for one in settings if not one.startswith("method.")]
    data, model, tokenizer = loaded([*others, "method.name=feature-extraction"])
    layers = model.config.num_hidden_layers
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=2 * RANK, lora_dropout=0.05, modules_to_save=["classifier"],
        target_modules=["query", "key", "value", "dense"], layers_to_transform=list(range(layers - TOP, layers)),
        layers_pattern="layer",
    )  # fmt: skip
    return data, peft.get_peft_model(model, config), tokenizer


def trainer(settings: list[str]) -> dict[str, Any]:
    """Train by HF Trainer."""
    import transformers

    return trained(transformers.Trainer, adapted(settings), batch=STEP, step=STEP, learning_rate=5e-4)


def peaks(settings: list[str]) -> dict[str, Any]:
    """Return the peak bytes of live tensors in a step, of both."""
    import numpy as np
    import torch

    from ftkit.config.files import load_config
    from ftkit.data.batching import Padding, collate
    from ftkit.observe.recorder import Recorder
    from ftkit.observe.tape import Role
    from ftkit.plan.inputs.shapes import Sequences
    from ftkit.plan.inputs.target import find_target
    from ftkit.plan.predict import predict

    data, model, tokenizer = adapted(settings)
    rows = np.argsort(-data.train.lengths, kind="stable")[:STEP]
    batch = collate(data.train, rows, Padding(tokenizer.pad_token_id), torch.device("cpu"))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    recorder = Recorder()
    model.train()
    with recorder.inside(model, {}):
        recorder.see(model.named_parameters(), Role.PARAMETER)
        recorder.see(model.named_buffers(), Role.BUFFER)
        for _ in range(2):
            model(**batch.inputs(), labels=batch.labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    found = {"trainer": recorder.tape.peak_bytes()}
    for name, cut in {"ftkit": [], "ftkit, 32 at once": [f"batch.micro_batch_size={STEP}"]}.items():
        prediction = predict(
            load_config(settings=[*settings, *cut]), find_target(), sequences=Sequences.of(data), is_cached=False
        )
        assert prediction.trunk is not None
        found |= {f"{name}: steps": prediction.trunk.step_peak_bytes, f"{name}: pass": prediction.trunk.pass_peak_bytes}
    return found


if __name__ == "__main__":
    main()
