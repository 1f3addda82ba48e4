"""Peaks and times of models with random weights on a GPU, beside what is planned without one.

    python -m benchmarks.on_a_gpu run --models /dev/shm/models [--seconds 300] [ROW ...]
    python -m benchmarks.on_a_gpu table

`run` makes the models that its rows need, of the shapes that ftkit knows by name, and lets `ftkit profile` measure each
row: five steps on the worst batch. What it measures is appended to `benchmarks/on_a_gpu.jsonl`; a row is measured anew
only if it is named. `table` plans the measured rows for their card, on any machine, for the table of docs/plan.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ftkit.machine.hardware import recognize_gpu
from ftkit.models.sources.known import shapes
from ftkit.models.sources.toys import make_tokenizer

KEPT = Path(__file__).with_suffix(".jsonl")
SHARD_BYTES = 2 * 10**9
GIB = 2**30
MOST_SECONDS = 150
FIELDS = (
    "status", "reason", "device", "peak_active_bytes", "peak_reserved_bytes", "peak_process_bytes", "host_bytes",
    "step_seconds", "step_seconds_spread", "tokens_per_second", "versions",
)  # fmt: skip


def flags(model: str, task: str, method: str, length: int, micro: int, *more: str) -> tuple[str, ...]:
    """Return a row's model and the flags of `ftkit profile` and `ftkit plan`, one micro-batch a step."""
    sizes = {"--max-length": length, "--micro-batch-size": micro, "--global-batch-size": micro}
    pairs = {"--task": task, "--method": method} | sizes
    return model, *(str(one) for pair in pairs.items() for one in pair), *more


LAYER = ("--recompute", "layer")
STREAMED = (*LAYER, "--set", "engine.stream_layers=ram")
OFFLOADED = (*LAYER, "--set", "model.offload_activations=true")
EIGHT, ONE = "llama-3.1-8b", "llama-3.2-1b"
ROWS = {
    "8B LoRA 512": flags(EIGHT, "causal-lm", "lora", 512, 1),
    "8B QLoRA 512": flags(EIGHT, "causal-lm", "qlora", 512, 1),
    "8B LoRA 512, streamed": flags(EIGHT, "causal-lm", "lora", 512, 1, *STREAMED),
    "8B QLoRA 512, streamed": flags(EIGHT, "causal-lm", "qlora", 512, 1, *STREAMED),
    "8B LoRA 4096, layers recompute": flags(EIGHT, "causal-lm", "lora", 4096, 1, *LAYER),
    "8B LoRA 4096, offloaded": flags(EIGHT, "causal-lm", "lora", 4096, 1, *OFFLOADED),
    "1B full 4 x 1024": flags(ONE, "causal-lm", "full", 1024, 4),
    "1B full fp16 4 x 512": flags(ONE, "causal-lm", "full", 512, 4, "--precision", "fp16"),
    "1B LoRA 2 of 16 x 512, cheap": flags(
        ONE, "causal-lm", "lora", 512, 16, "--recompute", "cheap", "--global-batch-size", "32"
    ),
    "1B LoRA classes 32 x 256": flags(ONE, "sequence-classification", "lora", 256, 32),
    "GPT-2 full 8 x 1024": flags("gpt2", "causal-lm", "full", 1024, 8),
    "GPT-2 LoRA fp32 8 x 512": flags("gpt2", "causal-lm", "lora", 512, 8, "--precision", "fp32"),
}


def make(name: str, folder: Path) -> None:
    """Save a model of random weights in bf16, of the shapes that ftkit knows by name, a shard at a time."""
    given = shapes(name)
    config = AutoConfig.for_model(given.pop("model_type"), **given | {"dtype": "bfloat16"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True)
    make_tokenizer(folder)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards({key: one.shape for key, one in model.named_parameters()})):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def shards(wanted: Mapping[str, torch.Size]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield random tensors; those of one dimension, which scale or shift, are ones or zeros."""
    shard: dict[str, torch.Tensor] = {}
    for key, shape in wanted.items():
        if len(shape) > 1:
            shard[key] = torch.randn(shape, dtype=torch.bfloat16, device="cuda").mul_(0.02).cpu()
        else:
            shard[key] = torch.full(shape, 0.0 if key.endswith("bias") else 1.0, dtype=torch.bfloat16)
        if sum(one.nbytes for one in shard.values()) > SHARD_BYTES:
            yield shard
            shard = {}
    yield shard


def measured() -> dict[str, dict[str, Any]]:
    """Return the rows of the kept file by their names."""
    lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def run(models: Path, seconds: float, names: list[str]) -> None:
    """Measure rows until the time is over, and say what is left."""
    until = time.monotonic() + seconds
    for name in names or [name for name in ROWS if name not in measured()]:
        model, *given = ROWS[name]
        if time.monotonic() > until:
            print("left:", name)
            continue
        if not (models / model).exists():
            make(model, models / model)
        with tempfile.TemporaryDirectory() as folder:
            ask = [sys.executable, "-m", "ftkit", "profile", "--json", "--no-plan", "--output", folder]
            ask += ["--model", str(models / model), "--time-limit", str(MOST_SECONDS), *given]
            done = subprocess.run(ask, capture_output=True, text=True)
        if not done.stdout.startswith("["):
            raise SystemExit(done.stderr[-2000:])
        (row,) = json.loads(done.stdout)
        with KEPT.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name} | {key: row[key] for key in FIELDS}) + "\n")
        print(name, row["status"], row["peak_active_bytes"], row["step_seconds"], row["reason"] or "", flush=True)


def planned(name: str, device: str) -> dict[str, Any]:
    """Return what `ftkit plan` says of a row on a card, every layer traced."""
    model, *given = ROWS[name]
    gpu = recognize_gpu(device)
    assert gpu is not None, f"{device} is not in ftkit's table"
    ask = [sys.executable, "-m", "ftkit", "plan", "--json", "--exact", "--gpu", gpu.name, "--model", model, *given]
    plan: dict[str, Any] = json.loads(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
    return plan


def table() -> None:
    """Print the rows of the page: what was measured beside what is planned."""
    print("| run | allocated, GiB | planned | reserved, GiB | planned |\n|---|---|---|---|---|")
    for name, row in measured().items():
        plan, cells = planned(name, row["device"]), [name]
        for key in ("peak_active_bytes", "peak_reserved_bytes"):
            cells += [f"{row[key] / GIB:.3f}", f"{plan[key] / row[key] - 1:+.2%}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--models", type=Path, required=True)
    running.add_argument("--seconds", type=float, default=1e9)
    running.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW")
    commands.add_parser("table")
    asked = parser.parse_args()
    if asked.command == "run":
        run(asked.models, asked.seconds, asked.rows)
    else:
        table()


if __name__ == "__main__":
    main()
