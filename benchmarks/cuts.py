"""The time of one optimizer step, cut into micro-batches of several sizes; on one thread of this processor.

    python -m benchmarks.cuts minilm lora --length 128 --sequences 32
    python -m benchmarks.cuts llama full --length 256 --sequences 8 [--layers 30] [--rounds 3] [--precision bf16]

The models have the shapes of MiniLM and SmolLM2-135M and random weights; every cut takes the same sequences,
one step after the other, in turns. A round gives each cut's time by that of the cut whose median is the quickest. The
clock is that of the process, which stands still while another program has the core.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.beside import spread
from benchmarks.lean_step import MINILM, SMOLLM2
from ftkit.config.files import load_config
from ftkit.data.batching import MicroBatch, Shape
from ftkit.engine.assemble import assemble
from ftkit.engine.protocol import Engine
from ftkit.engine.resolve import Devices, resolve
from ftkit.machine.heap import keep_heap_whole
from ftkit.machine.process import ProcessContext, joined
from ftkit.models.build import set_training
from ftkit.models.sources.source import load_config as load_architecture
from ftkit.models.sources.source import resolve_source
from ftkit.models.sources.toys import make_model
from ftkit.observe.recorded import make_batches
from ftkit.step.step import train_step

CUTS = (128, 256, 512, 1024, 2048, 4096)
"""Padded tokens of a micro-batch."""


def make_engine(kind: str, method: str, precision: str, num_layers: int, folder: Path) -> Engine:
    """Return a plain engine over a model of random weights, as training assembles it.

    Args:
        kind: `minilm` or `llama`.
        method: its label.
        precision: `fp32` or `bf16`.
        num_layers: of the model; 0: all of them.
        folder: gets the model's files.
    """
    is_lm = kind == "llama"
    smollm2: dict[str, Any] = SMOLLM2 | {"num_hidden_layers": num_layers or 30}
    config = transformers.LlamaConfig(**smollm2) if is_lm else transformers.BertConfig(**MINILM)
    config.pad_token_id = 1
    task = "causal-lm" if is_lm else "sequence-classification"
    rates = ["method.rank=8", "method.dropout=0.05"] if "lora" in method else []
    settings = [f"method.name={method}", f"task={task}", "cache.trunk=off", f"model.precision={precision}", *rates]
    model = make_model(folder, config)
    run = resolve(load_config(settings=[*settings, f"model.name={model}"]), Devices.of(ProcessContext()))
    source = resolve_source(run.config.model, run.config.task)
    architecture = load_architecture(source, None if is_lm else ["a", "b"], 1)
    engine = assemble(run, source, architecture, ProcessContext()).engine
    set_training(engine.model, True)
    return engine


def step_seconds(engine: Engine, batches: list[MicroBatch]) -> float:
    """Return the seconds of the processor that a step takes."""
    num_targets = sum(one.labels.numel() for one in batches)
    began = time.process_time()
    train_step(engine, batches, num_targets, 1e-5)
    return time.process_time() - began


def main() -> None:
    """Read the command line, take the steps, and print their times."""
    keep_heap_whole()  # as `ftkit train` does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["minilm", "llama"])
    parser.add_argument("method", choices=["lora", "qlora", "full"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--sequences", type=int, default=8, help="of a step")
    parser.add_argument("--layers", type=int, default=0, help="of `llama`; 0: 30")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cuts", type=int, nargs="+", default=CUTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [cut // asked.length for cut in asked.cuts if asked.length <= cut <= asked.length * asked.sequences]
    with tempfile.TemporaryDirectory() as folder, joined(ProcessContext()):
        engine = make_engine(asked.model, asked.method, asked.precision, asked.layers, Path(folder))
        shapes = {
            size: Shape(size, asked.length, asked.sequences // size, is_padded=asked.model == "minilm")
            for size in sizes
        }
        batches = {size: make_batches(engine.objective, shape) for size, shape in shapes.items()}
        step_seconds(engine, batches[sizes[0]])  # the optimizer has no state yet
        rounds = [{size: step_seconds(engine, batches[size]) for size in sizes} for _ in range(asked.rounds)]
    best = min(sizes, key=lambda size: median(one[size] for one in rounds))
    print(f"{asked.model}, {asked.method}, {asked.precision}, {asked.sequences} x {asked.length} tokens")
    for size in sizes:
        seconds, ratios = [one[size] for one in rounds], [one[size] / one[best] for one in rounds]
        print(f"{size * asked.length:5} tokens: {median(seconds):7.3f} s, {spread(ratios)} of the best", flush=True)


if __name__ == "__main__":
    main()
