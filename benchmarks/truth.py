"""Published peaks of other stacks against traces of what those stacks did.

    python benchmarks/truth.py trace public.jsonl results.jsonl [--group TEXT]
    python benchmarks/truth.py table public.jsonl results.jsonl docs/truth.md

Rows of a stack whose own versions install from the package index are traced with those versions: run `trace` in an
environment that has them (the planner's recorder needs torch alone). What each stack did is said in code below, from
its own source; nothing is fitted. A row that is not reproduced is listed with the reason.
"""

import argparse
import gc
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from ftkit.plan import cuda
from ftkit.plan.allocator import replay
from ftkit.plan.tape import BACKWARD, FORWARD, LOAD, OPTIMIZER, Recorder, Tape
from ftkit.plan.timeline import allocator_events, find_peak

Row = dict[str, Any]
CHUNK_TOKENS = 128
"""LitGPT's lm_head_chunk_size (lit_gpt/model.py, finetune/lora.py)."""
CHUNKS = 8
"""torchtune's CEWithChunkedOutputLoss."""


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced here, or None."""
    if "vit" in row["model_id"]:
        return "an image model"
    if row["group"].startswith(("litgpt", "torchtune")):
        return "a model code of its own; transformers' in its place is 3 to 17 % off"
    if row["n_gpus"] > 1:
        return f"its sharding is not DeepSpeed's ({row['parallel']})"
    if row["quant"]:
        return "4-bit layers of a bitsandbytes or torchao before the traced one, which kept other tensors"
    if "autocast" in row["compute_dtype"] and "no autocast" not in row["compute_dtype"]:
        return "autocast, which CPU and CUDA cast by different lists"
    if "mixed" in row["compute_dtype"]:
        return "autocast, which CPU and CUDA cast by different lists"
    if row["torch_compile"] or "ompile" in row["id"]:
        return "compiled: the compiler decides what is kept"
    if "OptInBwd" in row["id"] or "ActOffload" in row["id"]:
        return "the optimizer runs inside the backward, or activations go to the host"
    if row["optimizer"] in ("adafactor", "bitsandbytes Adam8bit"):
        return f"its optimizer ({row['optimizer']}) is not one of ftkit's, with its stack's temporaries"
    return None


def trace_row(row: Row) -> Tape:
    """Trace two steps of what a row's stack did."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = build(row)
    recorder = Recorder(cuda.storage_size, cuda.scratch_size)
    gc.collect()
    gc.disable()
    with mode, cuda.unpacked_batches(), cuda.cuda_semantics(), recorder:
        fake(model)
        recorder.see(model.named_parameters(), "parameter")
        recorder.see(model.named_buffers(), "buffer")
        workspaces = [torch.empty(cuda.cublas_workspace(None), dtype=torch.uint8) for _ in range(cuda.NUM_WORKSPACES)]
        recorder.see([("workspace", one) for one in workspaces], "buffer")
        recorder.mark(LOAD)
        steps(row, model, recorder)
    gc.enable()
    return recorder.tape


def steps(row: Row, model: Any, recorder: Recorder) -> None:
    """Run two optimizer steps, each of one or two micro-batches where gradients were accumulated."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    foreach = "adamw_hf" not in row["optimizer"]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=foreach)
    accumulated = 2 if row["grad_accum"] not in (1, None, "none") and "packed" not in str(row["seq_kind"]) else 1
    clips = row["framework"].lower().startswith(("fms", "transformers", "hf"))
    for step in (1, 2):
        recorder.step = step
        for _ in range(accumulated):
            ids = torch.ones(row["micro_batch"], row["seq_len"], dtype=torch.int64)
            recorder.see([("ids", ids)], "input")
            recorder.phase = FORWARD
            loss = LOSSES[loss_kind(row)](model, ids)
            recorder.mark(FORWARD)
            recorder.phase = BACKWARD
            loss.backward()
            del loss
            recorder.mark(BACKWARD)
        recorder.phase = OPTIMIZER
        if clips:
            nn.utils.clip_grad_norm_(trained, 1.0, foreach=foreach)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recorder.mark(OPTIMIZER)


def loss_kind(row: Row) -> str:
    """Return which loss a row's stack computes."""
    head = row["loss_head"] or ""
    if "classification" in head:
        return "classes"
    if "128" in head:
        return "litgpt"
    if "Chunked" in head:
        return "torchtune"
    return "own" if "HF" in head else "whole"


def _classes(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(input_ids=ids).logits, torch.zeros(ids.shape[0], dtype=torch.int64))


def _own(model: Any, ids: torch.Tensor) -> Any:
    return model(input_ids=ids, labels=ids).loss


def _whole(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """torchtune: fp32 logits, labels shifted."""
    logits = model(input_ids=ids).logits.float()
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids.reshape(-1))


def _litgpt(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The head on 128 tokens at a time; each chunk's cross-entropy in the dtype of the model (lit_gpt/utils.py)."""
    body, head = _body_and_head(model)
    logits = [head(part) for part in body(input_ids=ids)[0].split(CHUNK_TOKENS, dim=1)]
    logits[-1] = logits[-1][..., :-1, :]
    targets = ids[..., 1:].split(CHUNK_TOKENS, dim=1)
    losses = [
        functional.cross_entropy(part.reshape(-1, part.shape[-1]), target.reshape(-1), reduction="none")
        for part, target in zip(logits, targets, strict=True)
    ]
    return torch.cat(losses).mean()


def _torchtune(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The head on an eighth of the tokens at a time, cross-entropy in fp32 (torchtune/modules/loss)."""
    body, head = _body_and_head(model)
    logits = [head(part) for part in body(input_ids=ids)[0].chunk(CHUNKS, dim=1)]
    total = torch.zeros(())
    for part, target in zip(logits, ids.chunk(CHUNKS, dim=1), strict=True):
        flat = part.reshape(-1, part.shape[-1]).float()
        total = total + functional.cross_entropy(flat, target.reshape(-1), reduction="sum")
    return total / ids.numel()


LOSSES: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "classes": _classes,
    "own": _own,
    "whole": _whole,
    "litgpt": _litgpt,
    "torchtune": _torchtune,
}


def build(row: Row) -> Any:
    """Build a row's model on `meta`, with its adapters and its checkpointing."""
    import transformers

    architecture = row_architecture(row)
    dtype = torch.float32 if row["compute_dtype"].startswith("fp32") else torch.bfloat16
    kind = transformers.AutoModelForSequenceClassification if "Bert" in row["arch"]["arch_class"] else None
    kind = kind or transformers.AutoModelForCausalLM
    with torch.device("meta"):
        attention = "eager" if "Bert" in row["arch"]["arch_class"] else "sdpa"
        model = kind.from_config(architecture, torch_dtype=dtype, attn_implementation=attention)
        if row["attn_impl"] == "flash_attention_2":
            _use_flash()
        if row["grad_checkpointing"] is True:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": row["lora_r"] is None})
        if row["method"] == "lora":
            model = adapt(row, model, dtype)
    return model.train()


def row_architecture(row: Row) -> Any:
    """Return the transformers configuration of a row."""
    import transformers

    arch = row["arch"]
    fields = {
        "hidden_size": arch["hidden"],
        "num_hidden_layers": arch["layers"],
        "num_attention_heads": arch["heads"],
        "num_key_value_heads": arch.get("kv_heads") or arch["heads"],
        "intermediate_size": arch["intermediate"],
        "vocab_size": arch["vocab"],
        "tie_word_embeddings": bool(arch.get("tie_embeddings")),
        "use_cache": False,
        "pad_token_id": 0,
    }
    name = arch["arch_class"].removesuffix("ForCausalLM").removesuffix("ForSequenceClassification")
    kinds = {"Llama": "llama", "Mistral": "mistral", "Phi": "phi", "GPTNeoX": "gpt_neox", "Bert": "bert"}
    if name == "Phi":
        fields["partial_rotary_factor"] = 0.5
    if name in ("Bert", "GPTNeoX"):
        fields.pop("num_key_value_heads")
    if name == "Bert":
        fields |= {"tie_word_embeddings": True}
    return transformers.AutoConfig.for_model(kinds[name], **fields)


def adapt(row: Row, model: Any, dtype: torch.dtype) -> Any:
    """Add a row's adapters: in fp32 where PEFT upcast them, in the dtype of the model in the other stacks."""
    import peft

    upcasts = row["framework"].startswith("fms")
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    wanted = row["lora_target_modules"]
    short = {"query": "q_proj", "value": "v_proj", "output_proj": "o_proj"}
    targets = {short.get(one, one) for one in wanted.replace(",", " ").replace("(", " ").split()} & names
    targets = targets or names & {"query_key_value"}
    if "MLP" in wanted or "w1" in wanted or "mlp" in wanted:
        targets |= names & {"gate_proj", "up_proj", "down_proj"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=row["lora_r"], target_modules=sorted(targets)))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32 if upcasts else dtype)
    return adapted


def fake(model: nn.Module) -> None:
    """Put fake tensors in the place of those on `meta`; tied weights stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in list(table.items()):
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                    made[id(tensor)] = (
                        nn.Parameter(empty, tensor.requires_grad) if table is module._parameters else empty
                    )
                table[name] = made[id(tensor)]  # type: ignore[index]  # one of two tables


def _use_flash() -> None:
    """Let the model call the flash kernel as the flash-attn package does: keys and values not repeated."""
    from transformers import modeling_utils

    def attention(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        del module
        out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)[0]
        return out.transpose(1, 2), None

    modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"] = attention


def _body_and_head(model: Any) -> tuple[Any, Any]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model, inner.get_output_embeddings()


def figure(row: Row, tape: Tape) -> int:
    """Return the prediction of what a row measured."""
    if row["metric_class"] in ("allocated_peak", "active_peak"):
        return find_peak(tape).active_bytes
    reserved = replay(allocator_events(tape)).peak_reserved_bytes
    context = (row["extra_metrics"] or {}).get("nvml_after_cuda_context_MiB", 0) * 2**20
    return reserved + (context if row["metric_class"] == "nvml_device" else 0)


def rows(path: Path, group: str = "") -> Iterator[Row]:
    """Yield the rows that are scored: of high confidence, known length, and each measurement once."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row: Row = json.loads(line)
        if row["confidence"] == "high" and row["length_known"] and group in row["group"]:
            yield row


def trace_rows(path: Path, out: Path, group: str) -> None:
    """Trace the rows of a group and append what came out."""
    versions = f"transformers {metadata.version('transformers')}, peft {metadata.version('peft')}"
    with out.open("a", encoding="utf-8") as file:
        for row in rows(path, group):
            if reason_not_traced(row) is None:
                predicted = figure(row, trace_row(row))
                error = predicted / row["value_bytes"] - 1
                print(
                    f"{row['id']:28} {row['value_bytes'] / 1e9:8.3f} GB  {predicted / 1e9:8.3f} GB  {error:+.2%}",
                    flush=True,
                )
                file.write(json.dumps({"id": row["id"], "predicted": predicted, "versions": versions}) + "\n")


def table(path: Path, results: Path, out: Path) -> None:
    """Write the table and the statistics."""
    found = {one["id"]: one for one in map(json.loads, results.read_text(encoding="utf-8").splitlines())}
    groups: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
    left: list[str] = []
    for row in rows(path):
        if row["id"] in found:
            groups[row["group"]].append((row, found[row["id"]]))
        else:
            left.append(f"| {row['id']} | {row['group']} | {reason_not_traced(row) or 'not run'} |")
    lines = ["# Published peaks and the planner's", "", "Generated by `benchmarks/truth.py table`.", ""]
    lines += [
        "| row | model | method | measured GB | predicted GB | error | traced with | source |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    errors = []
    for group, pairs in groups.items():
        for row, one in pairs:
            lines.append(_line(row, one))
        sizes = [abs(one["predicted"] / row["value_bytes"] - 1) for row, one in pairs]
        errors += sizes
        lines.append(f"| **{group}** | | | | | median {statistics.median(sizes):.2%}, worst {max(sizes):.2%} | | |")
    ordered = sorted(errors)
    tail = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    lines += ["", f"All {len(errors)} rows: median {statistics.median(errors):.2%}, 95th percentile {tail:.2%}.", ""]
    lines += ["## Not reproduced, and why", "", "| row | group | reason |", "|---|---|---|", *left, ""]
    out.write_text("\n".join(lines), encoding="utf-8")
    print(lines[-len(left) - 6])


def _line(row: Row, one: Row) -> str:
    source = row["source"]
    cells = [
        row["id"],
        row["model_id"].rsplit("/", 1)[-1],
        f"{row['method']}, {row['micro_batch']} x {row['seq_len']}",
        f"{row['value_bytes'] / 1e9:.3f}",
        f"{one['predicted'] / 1e9:.3f}",
        f"{one['predicted'] / row['value_bytes'] - 1:+.2%}",
        one["versions"],
        f"{source['repo']}, {source['file']}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("trace", "table"):
        command = commands.add_parser(name)
        command.add_argument("rows", type=Path)
        command.add_argument("results", type=Path)
        if name == "trace":
            command.add_argument("--group", default="")
        else:
            command.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "trace":
        trace_rows(arguments.rows, arguments.results, arguments.group)
    else:
        table(arguments.rows, arguments.results, arguments.out)


if __name__ == "__main__":
    main()
