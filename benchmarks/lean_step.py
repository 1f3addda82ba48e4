"""The lean step beside the plain one, in turns on one thread: time as a ratio, and live tensor bytes.

    python benchmarks/lean_step.py minilm
    python benchmarks/lean_step.py llama
    python benchmarks/lean_step.py llama recompute

With `recompute` the lean step stands beside itself at the levels of `model.recompute`. Each trains LoRA (r = 8, dropout
0.05) over random weights in fp32: neither time nor bytes depend on the values. `minilm` classifies with a model of
MiniLM's shape and its dropout of 0.1, 16 x 128 tokens. `llama` models language with one of SmolLM2-135M's shape at a
third of its depth (d 576, 10 layers, vocabulary 49,152), 4 x 256 tokens.
"""

import sys
import time
from statistics import median
from typing import Any

import torch
import transformers

from ftkit.config.recompute import LEVELS
from ftkit.config.tree import RunConfig
from ftkit.data.batching import Shape
from ftkit.engine.plain import PlainEngine
from ftkit.engine.protocol import Engine
from ftkit.machine.heap import keep_heap_whole
from ftkit.machine.process import ProcessContext
from ftkit.models.build import prepare_model, set_training
from ftkit.models.objective import objective_of
from ftkit.models.sources.start import Start
from ftkit.models.structure.heads import find_head
from ftkit.observe.recorded import batch_tensors, layer_names, make_batches, record_steps, see_model
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role
from ftkit.step.step import train_step

NUM_ROUNDS = 5
LORA = {"name": "lora", "rank": 8, "dropout": 0.05}
SHAPES = {"minilm": Shape(16, 128, is_padded=True), "llama": Shape(4, 256)}
SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
}


def make_engine(kind: str, *, lean: bool = True, recompute: str = "none", num_layers: int = 10) -> Engine:
    """Return an engine over a model with random weights; `num_layers` are those of `llama`."""
    torch.manual_seed(0)
    task = "causal-lm" if kind == "llama" else "sequence-classification"
    config = RunConfig.model_validate(
        {"task": task, "method": LORA, "model": {"name": kind, "lean": lean, "recompute": recompute}}
    )
    model: torch.nn.Module
    if kind == "llama":
        size = transformers.LlamaConfig(**SMOLLM2, num_hidden_layers=num_layers)
        model = transformers.LlamaForCausalLM(size)
    else:
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**MINILM))
    prepared = prepare_model(config, model, torch.float32, Start(head=find_head(model, ()), rows=range(0)))
    set_training(prepared, True)
    objective = objective_of(config, model.config, prepared)
    return PlainEngine(config, prepared, ProcessContext(), torch.float32, objective)


def count_bytes(engine: Engine, shape: Shape) -> int:
    """Return the most bytes of live tensors in two steps."""
    recorder, layers = Recorder(), layer_names(engine.model)
    with recorder.inside(engine.model, layers):
        see_model(recorder, engine.model, layers)
        batches = make_batches(engine.objective, shape)
        recorder.see(batch_tensors(batches), Role.INPUT)
        return record_steps(engine, batches, recorder).peak_bytes()


def time_step(engine: Engine, shape: Shape) -> float:
    """Return the seconds of the processor that one step takes."""
    batches = make_batches(engine.objective, shape)
    began = time.process_time()
    train_step(engine, batches, 100.0, 1e-4)
    return time.process_time() - began


def main(kind: str, axis: str = "lean") -> None:
    """Print medians over rounds of turns, and the spread of their ratios to the first of each round."""
    keep_heap_whole()  # as `ftkit train` does
    torch.set_num_threads(1)
    shape = SHAPES[kind]
    engines = (
        {level: make_engine(kind, recompute=level) for level in LEVELS}
        if axis == "recompute"
        else {name: make_engine(kind, lean=name == "lean") for name in ("plain", "lean")}
    )
    peaks = {name: count_bytes(engine, shape) for name, engine in engines.items()}
    rounds = [{name: time_step(engine, shape) for name, engine in engines.items()} for _ in range(NUM_ROUNDS)]
    first, *others = engines
    print(f"{kind}, {first}: peak of live tensors {peaks[first]:,} bytes")
    for name in others:
        ratios = sorted(one[name] / one[first] for one in rounds)
        print(f"{kind}, {name}: time {median(ratios):.2f} of {first} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(
            f"{kind}, {name}: peak of live tensors {peaks[name]:,} bytes: {peaks[name] / peaks[first]:.2f} of {first}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
