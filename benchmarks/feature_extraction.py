"""Feature extraction from the cache beside HF Trainer with the backbone frozen, in turns, each in a process of its own.

    python -m benchmarks.feature_extraction reviews --rounds 2
    python -m benchmarks.feature_extraction newsgroups --folder FOLDER   # that of the package's two .tab files

All of them get the same splits, fp32, five epochs in steps of 128 sequences, and a validation after each epoch:

    cold      ftkit train with an empty cache
    warm      the same again, with another seed
    logistic  the same again, with --head logistic
    trainer   HF Trainer: the backbone frozen and in evaluation mode, grouped by length, on the
              tokens that ftkit made (so that it need not tokenize), evaluations in batches sorted by length
    bare      one forward of the backbone over all sequences, sorted by length, and nothing else
    memory    SetFit's way: embeddings of all sequences in memory, and scikit-learn's LogisticRegression

Times are of whole processes, imports included, but for `bare`, whose forward alone is timed, as is the pass of `cold`.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EPOCHS, STEP, CUT = 5, 128, 512
BATCH = 32
"""Of HF Trainer: on a CPU 128 sequences at once take longer, since a layer no longer fits into its caches."""
WAYS = ("trainer", "cold", "warm", "logistic", "bare", "memory")


def main() -> None:
    """Run all ways in turns, and print a table and every time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("reviews", "newsgroups"))
    parser.add_argument("--folder", type=Path, help="of 20newsgroups-train.tab")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--samples", type=int, help="training sequences; all when not given")
    parser.add_argument("--way", choices=("trainer", "bare", "memory"), help="run one way here; for the program itself")
    asked = parser.parse_args()
    settings = settings_of(asked)
    if asked.way:
        print(json.dumps(globals()[asked.way](settings)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for way in WAYS:
                found[way].append(timed(way, asked, settings, Path(folder), number))
                print(way, json.dumps(found[way][-1]), flush=True)
    show(found)


def settings_of(asked: argparse.Namespace) -> list[str]:
    """Return the settings of every way."""
    settings = ["method.name=feature-extraction", f"training.epochs={EPOCHS}", f"batch.global_batch_size={STEP}"]
    settings += ["model.precision=fp32", "data.max_length=128", f"batch.micro_batch_tokens={CUT}"]
    if asked.data == "newsgroups":
        settings.append(f"data.dataset={as_csv(asked.folder)}")
    if asked.samples:
        settings.append(f"data.max_train_samples={asked.samples}")
    return settings


def as_csv(folder: Path) -> Path:
    """Write the training documents of 20 newsgroups as CSV: three header lines, then class and text."""
    target = Path(tempfile.gettempdir()) / "newsgroups.csv"
    with (folder / "20newsgroups-train.tab").open(encoding="utf-8", newline="") as given, target.open("w") as made:
        writer = csv.writer(made)
        writer.writerow(("text", "label"))
        for number, line in enumerate(given):
            if number >= 3:
                label, _, text = line.rstrip("\n").partition("\t")
                writer.writerow((text, label))
    return target


def timed(way: str, asked: argparse.Namespace, settings: list[str], folder: Path, number: int) -> dict[str, Any]:
    """Run a way in a process of its own; return what it found, with its seconds."""
    if way in ("cold", "warm", "logistic"):
        seed = number if way == "cold" else number + 1
        command = [sys.executable, "-m", "ftkit", "train", "--output", str(folder / way), "--seed", str(seed)]
        command += ["--set", "data.split_seed=0", *(f"--set={setting}" for setting in settings)]
        command += ["--head", "logistic"] if way == "logistic" else []
    else:
        given = [sys.argv[1], *(["--folder", str(asked.folder)] if asked.folder else [])]
        given += ["--samples", str(asked.samples)] if asked.samples else []
        command = [sys.executable, "-m", "benchmarks.feature_extraction", *given, "--way", way]
    printed, seconds = finished(command, folder)
    if way not in ("cold", "warm", "logistic"):
        return dict(json.loads(printed.splitlines()[-1]), seconds=seconds)
    return {"seconds": seconds} | of_record(folder / way, printed)


def finished(command: list[str], folder: Path) -> tuple[str, float]:
    """Run a command, with a cache in a folder; return what it printed, and its seconds."""
    environment = os.environ | {"FTKIT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-3000:])
    return done.stdout, seconds


def of_record(folder: Path, said: str) -> dict[str, Any]:
    """Return the accuracy of a run of ftkit, the seconds of its steps, and of its pass."""
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    test = next(line for line in lines if line["kind"] == "evaluation" and line["split"] == "test")
    took = re.search(r"is computed once, in ([\d.]+) s", " ".join(said.split()))
    steps = lines[-1]["train_seconds"]
    return {"accuracy": test["accuracy"], "steps": steps, "pass": float(took[1]) if took else None}


def loaded(settings: list[str]) -> tuple[Any, Any, Any]:
    """Return the splits that ftkit trains on, and the plain model of transformers with its tokenizer."""
    import torch

    from ftkit.config.files import load_config
    from ftkit.data.prepare import prepare_data
    from ftkit.engine.resolve import Devices, resolve
    from ftkit.machine.process import ProcessContext
    from ftkit.models.build import build_model
    from ftkit.models.sources.source import load_config as architecture_of
    from ftkit.models.sources.source import load_tokenizer, resolve_source

    run = resolve(
        load_config(settings=["data.split_seed=0", "model.lean=false", *settings]), Devices.of(ProcessContext())
    )
    source = resolve_source(run.config.model, run.config.task)
    tokenizer = load_tokenizer(source)
    data = prepare_data(run.config.data, run.config.task, tokenizer, run.config.data_seed, None)
    architecture = architecture_of(source, data.label_names, tokenizer.pad_token_id, data.label_kind)
    return data, build_model(run.config, source, architecture, torch.float32), tokenizer


def rows_of(split: Any) -> list[dict[str, Any]]:
    """Return a split as transformers' collator takes it."""
    return [
        {"input_ids": split.tokens[start:end].tolist(), "labels": int(label)}
        for start, end, label in zip(split.offsets[:-1], split.offsets[1:], split.labels, strict=True)
    ]


def trainer(settings: list[str]) -> dict[str, Any]:
    """Train the head by HF Trainer."""
    import transformers

    class Frozen(transformers.Trainer):
        """Keeps the frozen backbone in evaluation mode, as ftkit does."""

        def training_step(self, model: Any, *arguments: Any, **keywords: Any) -> Any:
            model.train()
            model.base_model.eval()
            return super().training_step(model, *arguments, **keywords)

    return trained(Frozen, loaded(settings), batch=BATCH, step=STEP, learning_rate=1e-2)


def trained(kind: Any, parts: tuple[Any, Any, Any], *, batch: int, step: int, learning_rate: float) -> dict[str, Any]:
    """Train by a kind of HF Trainer: grouped by length, evaluated in order of length.

    Args:
        kind: `transformers.Trainer`, or a class of its kind.
        parts: the splits, as ftkit has tokenized them; the model; the tokenizer, which pads.
        batch: sequences of a forward.
        step: sequences of an optimizer step.
        learning_rate: the peak of its schedule.

    Returns:
        The accuracy on the test split, and the seconds of the steps.
    """
    import datasets
    import numpy as np
    import transformers

    data, model, tokenizer = parts
    sets = {name: datasets.Dataset.from_list(rows_of(getattr(data, name))) for name in ("train", "validation", "test")}
    by_length = {name: one.select(np.argsort([len(ids) for ids in one["input_ids"]])) for name, one in sets.items()}
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=batch, gradient_accumulation_steps=step // batch,
            per_device_eval_batch_size=batch, num_train_epochs=EPOCHS, learning_rate=learning_rate, warmup_steps=0.06,
            weight_decay=0.01, eval_strategy="epoch", train_sampling_strategy="group_by_length", use_cpu=True,
            report_to=[], save_strategy="no", disable_tqdm=True, label_names=["labels"],
        )  # fmt: skip
        own = kind(
            model=model,
            args=arguments,
            train_dataset=sets["train"],
            eval_dataset=by_length["validation"],
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        begun = time.perf_counter()
        own.train()
        steps = time.perf_counter() - begun
        answers = own.predict(by_length["test"])
    return {"accuracy": float((np.argmax(answers.predictions, axis=1) == answers.label_ids).mean()), "steps": steps}


def features(settings: list[str]) -> tuple[Any, dict[str, Any], float]:
    """Return the splits, what the backbone makes of each, and the seconds of that."""
    import numpy as np
    import torch

    data, model, tokenizer = loaded(settings)
    found, begun = {}, time.perf_counter()
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        order, made, start = np.argsort(-split.lengths), torch.empty(len(split), model.config.hidden_size), 0
        while start < len(order):
            end = start + max(1, CUT // int(split.lengths[order[start]]))
            rows = [
                {"input_ids": split.tokens[split.offsets[one] : split.offsets[one + 1]]} for one in order[start:end]
            ]
            with torch.inference_mode():
                made[torch.from_numpy(order[start:end])] = model.base_model(**tokenizer.pad(rows, return_tensors="pt"))[
                    1
                ]
            start = end
        found[name] = made
    return data, found, time.perf_counter() - begun


def bare(settings: list[str]) -> dict[str, Any]:
    """Run the backbone forward once over all sequences."""
    return {"pass": features(settings)[2]}


def memory(settings: list[str]) -> dict[str, Any]:
    """Fit scikit-learn's logistic regression to embeddings in memory."""
    from sklearn.linear_model import LogisticRegression

    data, made, _ = features(settings)
    head = LogisticRegression(max_iter=1000).fit(made["train"], data.train.labels)
    return {"accuracy": float(head.score(made["test"], data.test.labels))}


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print the fastest of each way beside the others."""
    seconds = {way: min(one["seconds"] for one in times) for way, times in found.items()}
    for way, times in found.items():
        others = {key: min(one[key] for one in times) for key in ("steps", "pass", "accuracy") if times[0].get(key)}
        shown = "  ".join(f"{key} {value:.3f}" for key, value in others.items())
        print(f"{way:10} {seconds[way]:7.1f} s  {seconds['trainer'] / seconds[way]:6.1f} x  {shown}")
    print(
        f"pass beside bare: {min(one['pass'] for one in found['cold']) / min(one['pass'] for one in found['bare']):.3f}"
    )


if __name__ == "__main__":
    main()
