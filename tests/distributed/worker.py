"""What two ranks under the deepspeed launcher run: every case below; writes what they gave as JSON."""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ftkit.config.files import load_config
from ftkit.data import batching
from ftkit.data.arrays import TokenSplit
from ftkit.engine import foreign
from ftkit.engine.ds_config import templates_folder
from ftkit.engine.protocol import Engine
from ftkit.machine import process as distributed
from ftkit.machine.process import ProcessContext
from ftkit.machine.ranks import of_all_ranks
from ftkit.models.foreign import patched
from ftkit.models.methods import method_of
from ftkit.models.partitions import own_tensors
from ftkit.models.sources.source import load_tokenizer, resolve_source
from ftkit.models.streaming.stream import stream_of
from ftkit.models.trunk import build as trunk_build
from ftkit.models.trunk import store
from ftkit.models.trunk.rows import Rows
from ftkit.training.checkpoints.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from ftkit.training.evaluate import evaluate
from ftkit.training.results.model import save_model
from tests.helpers import (
    LABELS,
    PADDING,
    VOCABULARY,
    Outcome,
    build,
    build_cached,
    logits_of,
    ragged_split,
    save_tiny_model,
    take_steps,
)
from tests.models.streaming.conftest import deep_model, from_ram
from tests.quick_ranks import collect_little, know_the_processor

METHODS = ("feature-extraction", "lora", "qlora", "full")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RECOMPUTED = (
    ("gpt2", "lora", "fp32", "layer"), ("gpt2", "lora", "fp32", "cheap"), ("llama", "qlora", "bf16", "cheap"),
    ("bert", "full", "bf16", "cheap"),
)  # fmt: skip
CUT = "batch.micro_batch_tokens=64"
BOUNDED = "gpt2-full-zero3-fp32-sequence-classification"
"""The case in which what is gathered at once is counted."""


def settings_of(case: dict) -> list[str]:
    """Return the settings of a case."""
    settings = [f"method.name={case['method']}", f"task={case['task']}", "batch.global_batch_size=8"]
    settings += [f"engine.zero_stage={case['stage']}", case.get("cut", CUT)]
    settings += [f"data.label_kind={case['kind']}"] if "kind" in case else []
    settings += [f"training.class_weights={case['weights']}"] if "weights" in case else []
    settings += ["data.long_texts=windows"] if "windows" in case else []
    return settings + case.get("settings", [])


def split_of(case: dict, seed: int = 0) -> TokenSplit:
    """Return the sequences of a case, with labels of its kind."""
    split = ragged_split(case["task"], seed=seed, kind=case.get("kind", "single"))
    return in_windows(split) if "windows" in case else split


def in_windows(split: TokenSplit) -> TokenSplit:
    """Return the sequences of a split as the windows of half as many texts: one, two and three of each in turn."""
    windows = np.concatenate(([0], np.cumsum(np.tile((1, 2, 3), len(split) // 6))))
    return replace(split, windows=windows, labels=split.labels[windows[:-1]])


def cases() -> list[dict[str, Any]]:
    """Return every case that two ranks run."""
    classify: dict[str, Any] = {"task": "sequence-classification"}
    found: list[dict[str, Any]] = [
        {"model": model, "method": method, "stage": stage, "dtype": dtype, **classify}
        for model in ("gpt2", "bert", "llama")
        for method in METHODS
        for stage in (0, 1, 2, 3)
        # Below stage 3 what is shared out depends on sizes and types, and not on the architecture.
        for dtype in (("fp32", "bf16") if model == "gpt2" or stage == 3 else ("fp32",))
    ]
    found += [
        {"model": "llama", "method": method, "stage": stage, "dtype": "fp32", "task": "causal-lm"}
        for method in ("lora", "qlora")
        for stage in (0, 2, 3)
    ]
    moments, weights = ["engine.offload_optimizer=cpu"], ["engine.offload_parameters=cpu"]
    found += [
        {"model": "gpt2", "method": method, "stage": stage, "dtype": dtype, "settings": settings, **classify}
        for stage, settings in ((1, moments), (2, moments), (3, moments), (3, weights), (3, [*moments, *weights]))
        for method in ("lora", "qlora", "full")
        for dtype in (("fp32", "bf16") if method == "qlora" else ("fp32",))
    ]
    found += [{"model": "gpt2", "method": "lora", "stage": stage, "dtype": "fp16", **classify} for stage in (1, 2, 3)]
    found += [
        {"model": model, "method": method, "stage": 3, "dtype": dtype, "settings": [f"model.recompute={level}"]}
        | classify
        for model, method, dtype, level in RECOMPUTED
    ]
    labels = ({"kind": kind, "weights": "{a: 3, b: 1, c: 0.5}"} for kind in ("single", "multi"))
    found += [
        {"model": "bert", "method": "full", "stage": stage, "dtype": "fp32", **kind, **classify}
        for kind in (*labels, {"kind": "regression"})
        for stage in (0, 2)
    ]
    found += [
        {"model": "bert", "method": "lora", "stage": stage, "dtype": "fp32", "windows": True, **classify}
        for stage in (0, 2)
    ]
    return [{"name": name_of(case), **case} for case in found]


def cached_cases() -> list[dict[str, Any]]:
    """Return the cases in which the trunk is computed once, by both ranks together."""
    methods = (["method.name=feature-extraction"], ["method.name=lora", "method.top_layers=1"])
    every = ["batch.global_batch_size=8", "batch.micro_batch_size=1"]
    return [
        {"name": f"cached-{number}-zero{stage}", "settings": [*method, *every, f"engine.zero_stage={stage}"]}
        for number, method in enumerate(methods)
        for stage in (0, 2)
    ]


def run_cached(case: dict, process: ProcessContext, folder: Path) -> dict:
    """Take the same steps without the cache and with it."""
    os.environ["FTKIT_CACHE"] = str(folder / "cache")
    split, model = ragged_split("sequence-classification"), folder / "models" / "bert"
    whole = take_steps(*build(case["settings"], model, torch.float32, process), split)
    written: list[int] = []

    def write(path: Path, number: int, rows: Rows) -> None:
        written.append(number)
        store.write_shard(path, number, rows)

    with patched(trunk_build, "write_shard", write):
        config, engine, held = build_cached(case["settings"], model, process, split)
    every: list = [None] * process.world_size
    torch.distributed.all_gather_object(every, written)
    cached = take_steps(config, engine, held)
    state, other = engine.trainable_state(), whole.engine.trainable_state()
    moved = [name for name in other if not torch.equal(state[name], other[name])]
    return {
        "whole": [whole.losses, whole.norms],
        "cached": [cached.losses, cached.norms],
        "moved": moved,
        "written": every,
    }


def streamed_cases() -> list[dict[str, Any]]:
    """Return the ways in which both ranks stream the layers of a model of four of them."""
    disk = ["engine.stream_layers=disk"]
    return [
        {"name": "streamed", "streamed": disk},
        {"name": "streamed-together", "streamed": [*disk, "engine.stream_micro_batches=all"]},
        {
            "name": "streamed-together-ram-qlora-bf16",
            "streamed": [*disk, "engine.stream_micro_batches=all", "engine.stream_head=true"],
            "way": ["method.name=qlora"],
            "dtype": "bf16",
            "from_ram": True,
        },
    ]


def run_streamed(case: dict, process: ProcessContext, folder: Path) -> dict:
    """Take the same steps with all weights in memory and with streamed layers."""
    way = ["method.name=lora", "method.dropout=0", "task=causal-lm", "model.recompute=layer", "engine.name=plain"]
    way += ["batch.global_batch_size=8", "batch.micro_batch_size=1", *case.get("way", [])]
    split, found, states = ragged_split("causal-lm"), {}, {}
    dtype = DTYPES[case.get("dtype", "fp32")]
    for name, more in (("resident", []), ("streamed", case["streamed"])):
        with from_ram(process) if "from_ram" in case else contextlib.nullcontext():
            built = build([*way, *more], folder / "models" / "deep", dtype, process)
        taken = take_steps(*built, split, 2)
        found[name], states[name] = [taken.losses, taken.norms], taken.engine.trainable_state()
    moved = [name for name, one in states["resident"].items() if not torch.equal(states["streamed"][name], one)]
    return found | {"moved": moved, "mark": seen_by_both(taken.engine, process) if "from_ram" in case else None}


def seen_by_both(engine: Engine, process: ProcessContext) -> list[int]:
    """Let the first rank write into the memory that layers are streamed from; return what each rank sees there."""
    stream = stream_of(engine.model)
    assert stream is not None
    weight = stream.source.read(stream.layout.layers[0][0])[0].view(-1).view(torch.uint8)
    if process.is_main:
        weight[0] ^= 255
    of_all_ranks(process, None)  # nobody looks before it is written
    return of_all_ranks(process, int(weight[0]))


def name_of(case: dict) -> str:
    """Return a name that says all that a case turns on."""
    extra = [setting.partition(".")[2] for setting in case.get("settings", [])]
    extra += [case["kind"]] if "kind" in case else []
    extra += ["windows"] if "windows" in case else []
    return "-".join([case["model"], case["method"], f"zero{case['stage']}", case["dtype"], case["task"], *extra])


def run_case(case: dict, process: ProcessContext, folder: Path) -> dict:
    """Take three steps on ragged sequences; in fp32 also save, gather and checkpoint."""
    model = folder / "models" / case["model"]
    config, engine = build(settings_of(case), model, DTYPES[case["dtype"]], process)
    split = split_of(case)
    outcome = take_steps(config, engine, split)
    found: dict[str, Any] = {"losses": outcome.losses, "norms": outcome.norms, "engine": engine.name}
    if case["dtype"] == "fp32":
        target = folder / "saved" / case["name"]
        source = resolve_source(config.model, config.task)
        with counting_gathers() as most:
            save_model(engine, method_of(config), load_tokenizer(source), source, target)
        weights, moments = engine.trainable_state(), engine.optimizer_state()
        if process.is_main:
            state = TrainingState(step=3, num_steps=6, fingerprint="", config={})
            save_checkpoint(target / "checkpoints", state, weights, moments)
        torch.distributed.barrier()
        found["logits"] = logits_of(engine.model, split).flatten()[: 4 * VOCABULARY].tolist()
        if case["name"] == BOUNDED:
            found["gathered"] = gathered_at_once(engine, most)
        resumed = resume(case, process, folder, target)
        found["resumed"] = resumed.losses
        if "windows" in case:
            found["answers"] = answers_of(resumed.engine, split)
        if (case["model"], case["method"]) == ("gpt2", "lora"):
            found["undone"] = begin_and_undo(case, process, folder).losses
    return found


def answers_of(engine: Engine, split: TokenSplit) -> list[list[float]]:
    """Return the logits that a split is scored by: of each text the mean over its windows, wherever they were run."""
    logits = evaluate(engine, split, load_config(settings=[CUT]).batch, PADDING, LABELS)[1]
    assert logits is not None
    return [list(map(float, row)) for row in logits]


@contextlib.contextmanager
def counting_gathers() -> Iterator[list[int]]:
    """Yield the bytes of gathered weights that were alive at once, as a list with each time a weight was gathered."""
    alive: list[tuple[StorageWeakRef, int]] = []
    totals: list[int] = []
    gather = foreign.as_whole

    def counted(value: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        whole = gather(value, parameter)
        alive[:] = [one for one in alive if not one[0].expired()]
        alive.append((StorageWeakRef(whole.untyped_storage()), whole.nbytes))
        totals.append(sum(size for _, size in alive))
        return whole

    with patched(foreign, "as_whole", counted):
        yield totals


def gathered_at_once(engine: Engine, when_saved: list[int]) -> dict:
    """Round the weights, and return the most bytes that each rank held while that and the saving went on."""
    with counting_gathers() as when_rounded:
        engine.round_trainable(torch.bfloat16)
    weights = list(engine.weights(own_tensors(engine.model)))
    most: list = [None] * engine.process.world_size
    torch.distributed.all_gather_object(most, [max(when_saved), max(when_rounded)])
    return {
        "most": most,
        "largest": max(one.nbytes for _, one in weights),
        "total": sum(one.nbytes for _, one in weights),
        "is_rounded": all(torch.equal(one, one.bfloat16().float()) for _, one in weights),
    }


def begin_and_undo(case: dict, process: ProcessContext, folder: Path) -> Outcome:
    """Undo a step before its last backward, then take the three steps."""
    config, engine = build(settings_of(case), folder / "models" / case["model"], DTYPES[case["dtype"]], process)
    split = split_of(case, seed=9)
    shares = batching.cut(split.lengths, config.batch, process.world_size)[process.rank]
    engine.begin_step(len(shares))
    for rows in shares[:-1]:
        engine.backward(engine.loss(batching.collate(split, rows, PADDING, engine.device)) / len(split))
    engine.discard_gradients()
    return take_steps(config, engine, split_of(case))


def resume(case: dict, process: ProcessContext, folder: Path, target: Path):
    """Build anew, take up the checkpoint, and go on for two steps."""
    config, engine = build(settings_of(case), folder / "models" / case["model"], DTYPES[case["dtype"]], process)
    _, weights, moments = load_checkpoint(target / "checkpoints" / "step-00000003")
    engine.load_trainable_state(weights)
    engine.load_optimizer_state(moments)
    return take_steps(config, engine, split_of(case, seed=1), 2)


def main() -> None:
    """Run the cases; one that fails leaves its traceback."""
    folder, process = Path(sys.argv[1]), ProcessContext.from_environment()
    from deepspeed.accelerator import get_accelerator

    # This CPU's fp16 is slow but right; DeepSpeed asks for AVX512-FP16 and else refuses.
    type(get_accelerator()).is_fp16_supported = lambda self: True
    torch.set_num_threads(1)
    distributed.join(process)
    if process.is_main:
        for family in ("gpt2", "bert", "llama"):
            save_tiny_model(folder / "models" / family, family)
        deep_model(folder / "models" / "deep", "llama", 4)
    torch.distributed.barrier()
    assert templates_folder().is_dir()
    know_the_processor()
    keep_imports, found = collect_little(), {}
    for case in (*cases(), *cached_cases(), *streamed_cases()):
        try:
            take = run_case if "model" in case else run_streamed if "streamed" in case else run_cached
            found[case["name"]] = take(case, process, folder)
        except Exception:  # written down, and then the launcher ends the other rank, which would wait for ever
            found[case["name"]] = {"error": traceback.format_exc()}
            (folder / f"found-{process.rank}.json").write_text(json.dumps(found))
            raise
        if process.is_main:
            (folder / "found.json").write_text(json.dumps(found))
        keep_imports()
    distributed.leave()


if __name__ == "__main__":
    main()
