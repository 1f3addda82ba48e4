"""What `ftkit plan` says of a published configuration, where ftkit has the same one."""

from typing import Any

from benchmarks.stacks import Row
from ftkit.hardware import Gpu

KINDS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "QWenLMHeadModel (remote code)": "qwen2",
    "PhiForCausalLM": "phi",
}
"""Class to the transformers type of the same layers; Qwen's own code of 2023 has those of Qwen 2."""
TARGETS = {"c_attn": ("q_proj", "k_proj", "v_proj"), "query": ("q_proj",), "value": ("v_proj",), "key": ("k_proj",)}


def reason_not_planned(row: Row) -> str | None:
    """Return why ftkit cannot be told a row's configuration, or None."""
    if row["method"] not in ("lora", "qlora"):
        return "full training keeps fp32 masters in ftkit; other adapters are not ftkit's"
    if row["n_gpus"] != 1:
        return "its sharding is not DeepSpeed's"
    if (row["arch"] or {}).get("arch_class") not in KINDS:
        return "its model is not transformers' own"
    if not row["arch"].get("vocab"):
        return "its vocabulary is not known"
    if row["quant"] and "nf4" not in row["quant"]:
        return f"its quantization is not ftkit's ({row['quant']})"
    if row["torch_compile"] or row["offload"] not in (None, "none") or "mixed" in row["compute_dtype"]:
        return "compiled, offloaded or under autocast"
    return None


def judge(row: Row, gpu: Gpu) -> dict[str, Any]:
    """Return the predicted bytes of a row on a card, and whether they fit."""
    import transformers

    from ftkit.config import RunConfig
    from ftkit.plan.place import Place
    from ftkit.plan.predict import predict

    arch = row["arch"]
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
    found = predict(RunConfig.model_validate(configuration(row)), Place(gpu.name, "cuda", gpu, gpu.memory_bytes), model)
    return {"reserved_bytes": found.peak_reserved_bytes, "fits": found.fits}


def configuration(row: Row) -> dict[str, Any]:
    """Return a row as ftkit's configuration; sequences as long as its cap."""
    method: dict[str, Any] = {"name": row["method"], "rank": row["lora_r"] or 8, "targets": targets(row)}
    if row["method"] == "qlora":
        method["double_quantization"] = "-dq" in row["base_dtype"] or "double" in (row["quant"] or "")
    return {
        "task": "causal-lm",
        "model": {"precision": "bf16", "gradient_checkpointing": float(bool(row["grad_checkpointing"]))},
        "data": {"max_length": row["seq_len"]},
        "method": method,
        "batch": {"global_batch_size": 8 * row["micro_batch"], "micro_batch_size": row["micro_batch"]},
        "optimizer": {"name": "paged_adamw" if "Paged" in row["optimizer"] else "adamw"},
        "engine": {"name": "plain"},
    }


def targets(row: Row) -> tuple[str, ...]:
    """Return the names of a row's adapted layers in transformers."""
    named = (row["lora_target_modules"] or "").partition("(")[0].replace(",", " ").split()
    found = [target for name in named for target in TARGETS.get(name, (name,) if name.endswith("_proj") else ())]
    return tuple(dict.fromkeys(found)) or ("all-linear",)
