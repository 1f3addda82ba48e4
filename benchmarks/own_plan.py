"""What `ftkit plan` says of a published configuration, where ftkit has the same one."""

import re
from typing import TYPE_CHECKING, Any

from benchmarks.rows import Row, arch_of, card, num_micro_batches
from benchmarks.stacks import hf
from ftkit.machine.hardware import Gpu

if TYPE_CHECKING:
    from ftkit.observe.tape import Tape

KINDS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "QWenLMHeadModel (remote code)": "qwen2",
    "PhiForCausalLM": "phi",
}
"""Class to the transformers type of the same layers; Qwen's own code of 2023 has those of Qwen 2."""


def reason_not_planned(row: Row) -> str | None:
    """Return why ftkit cannot be told a row's configuration, or None."""
    if row["method"] not in ("lora", "qlora"):
        return "full training keeps fp32 masters in ftkit; other adapters are not ftkit's"
    if row["n_gpus"] != 1:
        return "its sharding is not DeepSpeed's"
    if row["arch"] is None or row["arch"]["arch_class"] not in KINDS:
        return "its model is not transformers' own"
    if not row["arch"]["vocab"]:
        return "its vocabulary is not known"
    if row["lora_r"] is None or targets(row) is None:
        return f"its adapters are not known (rank {row['lora_r']}, {row['lora_target_modules']})"
    if "adamw" not in row["optimizer"].lower() or "galore" in row["optimizer"].lower():
        return f"its optimizer is not ftkit's ({row['optimizer']})"
    if row["quant"] and "nf4" not in row["quant"]:
        return f"its quantization is not ftkit's ({row['quant']})"
    if row["torch_compile"] or row["offload"] not in (None, "none") or "mixed" in row["compute_dtype"]:
        return "compiled, offloaded or under autocast"
    return None


def judge(row: Row, gpu: Gpu) -> dict[str, Any]:
    """Return the predicted bytes of a row on a card, and whether they fit."""
    import transformers

    from ftkit.config.tree import RunConfig
    from ftkit.plan.choices.changes import changed
    from ftkit.plan.inputs.target import Target
    from ftkit.plan.predict import Tapes, predict

    arch = arch_of(row)
    model = transformers.AutoConfig.for_model(
        KINDS[arch["arch_class"]],
        hidden_size=arch["hidden"],
        num_hidden_layers=arch["layers"],
        num_attention_heads=arch["heads"],
        num_key_value_heads=arch.get("kv_heads") or arch["heads"],
        intermediate_size=arch["intermediate"],
        vocab_size=arch["vocab"],
        tie_word_embeddings=bool(arch.get("tie_embeddings")),
        max_position_embeddings=max(row["seq_len"], 2048),
        use_cache=False,
        pad_token_id=0,
    )
    tapes = Tapes()
    target = Target(gpu.name, "cuda", gpu, gpu.memory_bytes)
    config = RunConfig.model_validate(configuration(row))
    grown = changed(config, {"engine.expandable_segments": True})
    found, if_grown = (predict(one, target, model, tapes=tapes) for one in (config, grown))
    return {"reserved_bytes": found.peak_reserved_bytes, "fits": found.fits, "fits_grown": if_grown.fits}


def reason_not_a_rank(row: Row) -> str | None:
    """Return what of a row under ZeRO, all of which is stated, ftkit's own step does otherwise, or None."""
    if row["method"] not in ("lora", "qlora", "full"):
        return f"its method is not ftkit's ({row['method']})"
    if row["method"] != "full" and targets(row) is None:
        return f"its adapted layers are not ftkit's under ZeRO ({row['lora_target_modules']})"
    if "adamw" not in row["optimizer"].lower() or "8bit" in row["optimizer"].lower() or row.get("optimizer_bits") == 8:
        return f"its optimizer is not ftkit's under ZeRO ({row['optimizer']})"
    if row["fused_kernels"] != "none" or row["torch_compile"]:
        return "fused kernels and a compiler are not traced under ZeRO"
    if row["attn_impl"] not in ("sdpa", "eager"):
        return f"its attention is not traced under ZeRO ({row['attn_impl']})"
    return None


def deepspeed_rank(row: Row) -> "Tape":
    """Trace two steps of one rank under DeepSpeed's ZeRO: the engine is ftkit's too, and buckets are sized as it does.

    Args:
        row: of any library that gives a transformers model to DeepSpeed, which makes all of it half precision.
    """
    import torch

    from ftkit.config.tree import RunConfig
    from ftkit.data.batching import Shape
    from ftkit.engine.resolve import Devices, resolve
    from ftkit.plan.tracing.trace import trace
    from ftkit.plan.zero.share import share_out

    dtype = hf.half(row)
    config = RunConfig.model_validate(configuration(row) | {"engine": deepspeed_engine(row)})
    run = resolve(config, Devices("cuda", dtype is torch.bfloat16, row["n_gpus"], "deepspeed"))
    shape = Shape(row["micro_batch"], row["seq_len"], num_micro_batches(row))
    # The card decides the kernel of the attention.
    tape = trace(run.config, hf.architecture(row), dtype, shape.traced, card(row), sees_modules=run.partitions_weights)
    return share_out(tape, run).tape


def deepspeed_engine(row: Row) -> dict[str, Any]:
    """Return the engine of a row under ZeRO, such as `ZeRO-3` with `optimizer and params to CPU`."""
    stage = re.search(r"ZeRO[- ]?(\d)", row["parallel"])
    assert stage is not None
    away = (row["offload"] or "none").lower()
    engine = {"name": "deepspeed", "zero_stage": int(stage[1])}
    if away != "none":
        engine["offload_optimizer"] = "cpu"
    if "param" in away:
        engine["offload_parameters"] = "cpu"
    return engine


def configuration(row: Row) -> dict[str, Any]:
    """Return a row as ftkit's configuration; sequences as long as its cap."""
    method: dict[str, Any] = {"name": "full"}
    if row["method"] != "full":
        method = {"name": row["method"], "rank": row["lora_r"], "targets": targets(row)}
    if row["method"] == "qlora":
        method["double_quantization"] = "-dq" in row["base_dtype"] or "double" in (row["quant"] or "")
    return {
        "task": "sequence-classification" if hf.classifies(row) else "causal-lm",
        "model": {
            "precision": "auto",
            "recompute": "layer" if row["grad_checkpointing"] else "none",
            "attention": "eager" if row.get("attn_impl") == "eager" else "auto",
            "lean": False,  # the rows' stacks ran transformers and PEFT as they come
        },
        "data": {"max_length": row["seq_len"]},
        "method": method,
        "batch": {"global_batch_size": 8 * row["micro_batch"], "micro_batch_size": row["micro_batch"]},
        "optimizer": {"name": "paged_adamw" if "Paged" in row["optimizer"] else "adamw"},
        "engine": {"name": "plain"},
    }


WHOLE = {
    "all linear": ("all-linear",),
    "all-linear": ("all-linear",),
    "query,key,value,projection,mlp,head": ("all-linear",),
    "query,key,value,projection,mlp": ("all-linear",),
}
"""What rows call all linear layers; LitGPT's adapter of the head is left out, as ftkit has none there."""


def targets(row: Row) -> tuple[str, ...] | None:
    """Return the names of a row's adapted layers in transformers; None: one is not known."""
    said = (row["lora_target_modules"] or "").partition("(")[0].strip()
    if said in WHOLE:
        return WHOLE[said]
    named = said.replace(",", " ").split()
    found = [hf.ALIKE.get(name, (name,) if name.endswith("_proj") else ()) for name in named]
    return tuple(dict.fromkeys(target for one in found for target in one)) if found and all(found) else None
