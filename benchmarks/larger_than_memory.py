"""Train a model that need not be in memory: ftkit beside DeepSpeed's ZeRO-3 offload and accelerate, in turns.

    python -m benchmarks.larger_than_memory llama|large|smollm2 runs/larger [--rounds 3] [--names ftkit:disk ...]
    python -m benchmarks.larger_than_memory llama|large|smollm2 runs/larger --count-tensors
    python -m benchmarks.larger_than_memory table runs/larger
    python -m benchmarks.larger_than_memory table benchmarks            # the runs of docs/guide/larger-than-memory.md

LoRA of rank 8 beside all linear layers, fp32, texts of 32 tokens, four micro-batches of one text in a step. `llama` has
301 million random weights and `large` 702 million, most of them in 16 layers; `smollm2` is of SmolLM2-135M's shape. The
head of `large` is not its table of tokens too. Every run is a process
of its own (`benchmarks/offloaders.py`) with one thread for arithmetic, and may read in another. A round runs each
contestant once. A run takes three steps, the first of which is left out of its time. Bytes of tensors are counted in
runs of their own, two steps each, since that takes time.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.beside import ROOT, spread
from benchmarks.offloaders import Work
from ftkit.machine import heap

KEPT = "larger_than_memory.jsonl"
FTKIT = "ftkit:disk:engine.stream_head=true:engine.stream_micro_batches=all:model.recompute=cheap"
"""What the others are set beside."""
NAMES = [
    FTKIT,
    FTKIT.replace("disk", "disk:cold"),
    "ftkit:disk:engine.stream_head=true",
    "deepspeed:nvme",
    "deepspeed:cpu",
    "deepspeed:cpu:recompute",
    "accelerate:disk:recompute",
]
SHAPES: dict[str, Any] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "tie_word_embeddings": True,
    },
    "large": {
        "vocab_size": 32000, "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "tie_word_embeddings": False,
    },
    "smollm2": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
}  # fmt: skip
WORK = Work("", "", max_length=32, micro_batches=4, micro_batch_size=1, num_steps=3)
WORDS = ("good", "bad", "film", "plot", "dull", "fine", "the", "a", "very", "not")
Run = dict[str, Any]


def prepare(shape: str, folder: Path) -> Work:
    """Write a model of random weights and texts that are all longer than what is read of them."""
    from transformers import LlamaConfig

    from ftkit.models.sources.toys import make_model

    model, texts = folder / shape, folder / "texts"
    if not (model / "config.json").exists():
        make_model(model, LlamaConfig(**SHAPES[shape], pad_token_id=1))
    drawn = random.Random(0)
    lines = (" ".join(drawn.choices(WORDS, k=40)) for _ in range(WORK.global_batch_size * WORK.num_steps))
    texts.mkdir(parents=True, exist_ok=True)
    (texts / "train.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return replace(WORK, model=str(model.resolve()), data=str(texts.resolve()))


def run_one(name: str, work: Work, folder: Path) -> Run | None:
    """Run a contestant in a process of its own; None where it fails, which is printed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = folder / "work.json"
    job.write_text(json.dumps(asdict(work)), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.offloaders", name, str(job), str(folder / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    sets_heap = name.startswith("ftkit:")
    if sets_heap:
        environment |= heap.variables(environment)  # as its command does
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        print(f"{name} failed: {done.stdout[-1000:]}{done.stderr[-3000:]}", file=sys.stderr)
        return None
    return {"name": name, "sets_heap": sets_heap, **json.loads(done.stdout.splitlines()[-1])}


def compare(shape: str, names: Sequence[str], folder: Path, rounds: range, *, counts_tensors: bool) -> None:
    """Run every contestant in turn, round by round, and keep what each run gave."""
    work = prepare(shape, folder)
    if counts_tensors:
        work = replace(work, counts_tensors=True, num_steps=2)
    for number in rounds:
        for name in names:
            run = run_one(name, work, folder / "run")
            if run is None:
                continue
            with (folder / KEPT).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"round": number, "model": shape, **run}) + "\n")
            print(f"round {number + 1} {name:28} {step_seconds(run):6.2f} s a step", flush=True)


def step_seconds(run: Run) -> float:
    """Return the median time of a step, without the first."""
    return float(statistics.median(run["step_seconds"][1:]))


def table(runs: Sequence[Run]) -> str:
    """Return the table of one model: figures of each contestant, and ftkit's beside them."""
    timed = {(run["name"], run["round"]): run for run in runs if run.get("tensor_bytes") is None}
    if len({run.get("sets_heap", False) for (name, _), run in timed.items() if name == FTKIT}) > 1:
        raise SystemExit("some of these runs have the heap set and some have not: their times go into two tables")
    counted = {run["name"]: run["tensor_bytes"] for run in runs if run.get("tensor_bytes") is not None}

    def resident(name: str) -> float:
        return float(statistics.median(run["resident_bytes"] for (other, _), run in timed.items() if other == name))

    def above(name: str) -> float:
        return resident(name) - float(statistics.median(run["imported_bytes"] for run in runs))

    lines = [
        "| contestant | a step, s | the shortest | times ftkit's step | resident, MB | ftkit's, of them "
        "| above the libraries, MB | ftkit's, of them | tensors, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(name for name, _ in timed):
        own = {number: run for (other, number), run in timed.items() if other == name}
        ratios = [step_seconds(own[n]) / step_seconds(timed[FTKIT, n]) for n in own if (FTKIT, n) in timed]
        is_other = name != FTKIT
        cells = [
            name,
            f"{statistics.median(map(step_seconds, own.values())):.2f}",
            f"{min(second for run in own.values() for second in run['step_seconds'][1:]):.2f}",
            _ratio(ratios) if is_other else "",
            f"{resident(name) / 1e6:,.0f}",
            f"{resident(FTKIT) / resident(name):.2f}" if is_other else "",
            f"{above(name) / 1e6:,.0f}",
            f"{above(FTKIT) / above(name):.2f}" if is_other else "",
            f"{counted[name] / 1e6:,.0f}" if name in counted else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(ratios: Sequence[float]) -> str:
    """Return the median of some rounds' ratios with the least and the most; of one round its own."""
    return spread(ratios) if len(ratios) > 1 else f"{ratios[0]:.2f}" if ratios else ""


def read_runs(folder: Path) -> dict[str, list[Run]]:
    """Return the kept runs of a folder by their model."""
    models: dict[str, list[Run]] = {}
    for line in (folder / KEPT).read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        models.setdefault(run["model"], []).append(run)
    return models


def print_tables(folder: Path) -> None:
    """Print the tables of all models that were run, with the versions that are installed."""
    names = ("ftkit", "torch", "transformers", "peft", "deepspeed", "accelerate")
    print(f"{platform.machine()}, one thread; " + ", ".join(f"{name} {metadata.version(name)}" for name in names))
    for model, runs in read_runs(folder).items():
        print(f"\n{model}\n\n{table(runs)}")


def main() -> None:
    """Read the command line, and run or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[*SHAPES, "table"])
    parser.add_argument("out", type=Path, help="folder for models, texts and runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first round; of others to add to them")
    parser.add_argument("--names", nargs="+", default=NAMES, help="contestants; see benchmarks/offloaders.py")
    parser.add_argument(
        "--count-tensors", action="store_true", help="one round in which bytes are counted, not seconds"
    )
    arguments = parser.parse_args()
    if arguments.model != "table":
        rounds = range(arguments.first, arguments.first + (1 if arguments.count_tensors else arguments.rounds))
        compare(arguments.model, arguments.names, arguments.out, rounds, counts_tensors=arguments.count_tensors)
    print_tables(arguments.out)


if __name__ == "__main__":
    main()
