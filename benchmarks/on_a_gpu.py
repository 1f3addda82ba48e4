"""Peaks and times of models with random weights on a GPU, beside what is planned without one.

    python -m benchmarks.on_a_gpu run --models /dev/shm/models [--seconds 300] [ROW ...]
    python -m benchmarks.on_a_gpu table

`run` calibrates the card, makes the models that its rows need, of the shapes that ftkit knows by name, and measures
each row as `ftkit profile` does, on the worst batch, one after another in one process. What it measures, and what a
plan says that knows the calibration, is appended to `benchmarks/on_a_gpu.jsonl`; of a row that was measured twice the
last line counts. `table` plans the measured rows for their card by the table of cards, anywhere, for docs/plan.md.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from ftkit.config.files import load_config
from ftkit.config.tree import RunConfig
from ftkit.machine.hardware import recognize_gpu
from ftkit.machine.process import ProcessContext
from ftkit.models.sources.known import shapes
from ftkit.models.sources.toys import make_tokenizer
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict
from ftkit.plan.predicted import TracedPrediction
from ftkit.plan.seconds.calibration import keep
from ftkit.plan.seconds.gpu_rates import calibrate_gpu
from ftkit.profile.profiler import profile_run
from ftkit.records.files import read_record

KEPT = Path(__file__).with_suffix(".jsonl")
SHARD_BYTES = 2 * 10**9
GIB = 2**30
FIELDS = (
    "device", "peak_active_bytes", "peak_reserved_bytes", "peak_process_bytes", "host_bytes", "step_seconds",
    "step_seconds_spread", "tokens_per_second",
)  # fmt: skip
Row = tuple[str, tuple[str, ...]]
"""A model's short name, and the settings of a run."""


def row(model: str, task: str, method: str, length: int, micro: int, *more: str) -> Row:
    """Return a row, with one micro-batch a step unless it says otherwise."""
    sizes = {"data.max_length": length, "batch.micro_batch_size": micro, "batch.global_batch_size": micro}
    pairs = {"task": task, "method": method, "engine.name": "plain"} | sizes
    return model, (*(f"{key}={value}" for key, value in pairs.items()), *more)


LAYER, CHEAP = "model.recompute=layer", "model.recompute=cheap"
STREAMED, OFFLOADED = "engine.stream_layers=ram", "model.offload_activations=true"
SINGLE, HALF, PLAIN = "model.precision=fp32", "model.precision=fp16", "model.lean=false"
EIGHT, THREE, ONE, QWEN, BERT = "llama-3.1-8b", "llama-3.2-3b", "llama-3.2-1b", "qwen2.5-0.5b", "bert-base"
TEXT, CLASSES = "causal-lm", "sequence-classification"
ROWS = {
    "1B LoRA 8 x 512": row(ONE, TEXT, "lora", 512, 8),
    "1B QLoRA 8 x 512": row(ONE, TEXT, "qlora", 512, 8),
    "1B full 4 x 1024": row(ONE, TEXT, "full", 1024, 4),
    "1B full fp16 4 x 512": row(ONE, TEXT, "full", 512, 4, HALF),
    "1B LoRA fp32 2 x 1024": row(ONE, TEXT, "lora", 1024, 2, SINGLE),
    "1B LoRA 2 of 16 x 512, cheap": row(ONE, TEXT, "lora", 512, 16, CHEAP, "batch.global_batch_size=32"),
    "1B LoRA classes 32 x 256": row(ONE, CLASSES, "lora", 256, 32),
    "GPT-2 full 8 x 1024": row("gpt2", TEXT, "full", 1024, 8),
    "GPT-2 LoRA fp32 8 x 512": row("gpt2", TEXT, "lora", 512, 8, SINGLE),
    "BERT full 32 x 128": row(BERT, CLASSES, "full", 128, 32),
    "BERT LoRA fp16 64 x 256": row(BERT, CLASSES, "lora", 256, 64, HALF),
    "0.5B LoRA 16 x 512": row(QWEN, TEXT, "lora", 512, 16),
    "0.5B QLoRA 2 x 1024, layers recompute": row(QWEN, TEXT, "qlora", 1024, 2, LAYER),
    "0.5B full 4 x 1024, plain": row(QWEN, TEXT, "full", 1024, 4, PLAIN),
    "3B LoRA 4 x 1024": row(THREE, TEXT, "lora", 1024, 4),
    "3B QLoRA 4 x 1024": row(THREE, TEXT, "qlora", 1024, 4),
    "3B LoRA 4096, layers recompute": row(THREE, TEXT, "lora", 4096, 1, LAYER),
    "3B LoRA 4096, offloaded": row(THREE, TEXT, "lora", 4096, 1, LAYER, OFFLOADED),
    "8B LoRA 512": row(EIGHT, TEXT, "lora", 512, 1),
    "8B QLoRA 512": row(EIGHT, TEXT, "qlora", 512, 1),
    "8B LoRA 512, streamed": row(EIGHT, TEXT, "lora", 512, 1, LAYER, STREAMED),
}


def make(name: str, folder: Path) -> None:
    """Save a model of random weights in bf16, of the shapes that ftkit knows by name, a shard at a time."""
    given = shapes(name)
    config = AutoConfig.for_model(given.pop("model_type"), **given | {"dtype": "bfloat16"})
    kind: Any = AutoModel if config.model_type == "bert" else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config)
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
    until, process = time.monotonic() + seconds, ProcessContext()
    keep(calibrate_gpu(process.device, print))
    for name in names or ROWS:
        model, settings = ROWS[name]
        if time.monotonic() > until:
            print("left:", name)
            continue
        if not (models / model).exists():
            make(model, models / model)
        config = load_config(settings=[*settings, f"model.name={models / model}"])
        found = {"name": name, "calibrated_seconds": planned(config, None).step_seconds} | measure(config, process)
        with KEPT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(name, found["peak_active_bytes"], found["step_seconds"], found["calibrated_seconds"], flush=True)


def measure(config: RunConfig, process: ProcessContext) -> dict[str, Any]:
    """Return what a run measured, with nothing left on the card from the one before."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # as torch's own tests do; they would count towards the next peak
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as name:
        profile_run(config, process, Path(name), num_warmup=3, num_timed=10)
        record = read_record(Path(name))
    assert record.result is not None
    found = record.result.measurement.model_dump()
    return {key: found[key] for key in FIELDS} | {"versions": record.run.versions}


def planned(config: RunConfig, gpu: str | None) -> TracedPrediction:
    """Return what a plan says of a row: on a card of the table, or on this machine's own as it was calibrated."""
    found = predict(config, find_target(gpu), exact=gpu is not None)
    assert isinstance(found, TracedPrediction)
    return found


def table() -> None:
    """Print the rows of the page: what was measured beside what is planned."""
    columns = ("run", "card", "allocated, GiB", "planned", "reserved", "planned", "a step, s", "planned", "calibrated")
    print(f"| {' | '.join(columns)} |\n|---|---|{'---:|' * (len(columns) - 2)}")
    every = [line(name, found) for name, found in measured().items()]
    for cells, _ in every:
        print(f"| {' | '.join(cells)} |")
    for number, key in enumerate(("allocated", "reserved", "a step", "a step, calibrated")):
        off = sorted(abs(errors[number]) for _, errors in every)
        print(f"{key}: {statistics.median(off):.2%} off in the median, {off[-1]:.2%} at most")


def line(name: str, found: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    """Return a row's cells, and the errors of its plans."""
    gpu = recognize_gpu(found["device"])
    assert gpu is not None, f"{found['device']} is not in ftkit's table"
    model, settings = ROWS[name]
    plan = planned(load_config(settings=[*settings, f"model.name={model}"]), gpu.name)
    active, reserved, seconds = (found[key] for key in ("peak_active_bytes", "peak_reserved_bytes", "step_seconds"))
    assert plan.peak_reserved_bytes is not None
    errors = [
        plan.peak_active_bytes / active - 1,
        plan.peak_reserved_bytes / reserved - 1,
        plan.step_seconds / seconds - 1,
        found["calibrated_seconds"] / seconds - 1,
    ]
    cells = [name, gpu.name, f"{active / GIB:.3f}", f"{errors[0]:+.2%}", f"{reserved / GIB:.3f}", f"{errors[1]:+.2%}"]
    return [*cells, f"{seconds:.3f}", f"{errors[2]:+.0%}", f"{errors[3]:+.0%}"], errors


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
