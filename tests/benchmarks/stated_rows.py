"""A row that states every fact, from which tests take one away or put another in its place."""

from importlib import metadata

VERSIONS = ", ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "peft", "bitsandbytes"))
SMALL = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 128, "vocab": 256}
STATED = {
    "id": "stated",
    "group": "somebody/else",
    "dup_group": None,
    "source": {"repo": "some/body", "file": "table.md"},
    "model_id": "some/body",
    "arch": SMALL | {"arch_class": "LlamaForCausalLM"},
    "method": "lora",
    "lora_r": 8,
    "lora_target_modules": "q_proj v_proj",
    "trainable_notes": "lora_alpha 16, dropout 0.0, bias none",
    "base_dtype": "bfloat16",
    "quant": None,
    "compute_dtype": "no autocast",
    "optimizer": "torch.optim.AdamW",
    "micro_batch": 2,
    "grad_accum": 1,
    "seq_len": 16,
    "seq_kind": "fixed, random token ids",
    "grad_checkpointing": True,
    "attn_impl": "sdpa",
    "loss_head": "HF CausalLM loss on full logits",
    "fused_kernels": "none",
    "torch_compile": False,
    "parallel": "none",
    "offload": "none",
    "n_gpus": 1,
    "gpu": "RTX 3090",
    "framework": "transformers Trainer, use_reentrant=False",
    "framework_version": VERSIONS,
    "date": "2026-01-01",
    "metric_class": "allocated_peak",
    "value_bytes": 20_000_000,
    "extra_metrics": None,
    "throughput": None,
    "confidence": "high",
    "length_known": True,
}
FULL = {"method": "full", "lora_r": None, "lora_target_modules": None, "trainable_notes": "all parameters"}
"""What a row of full fine-tuning says instead."""
PACKED = {
    "method": "qlora",
    "quant": "bnb nf4, double quant, compute bfloat16, prepare_model_for_kbit_training",
}
"""What a row with 4-bit weights says instead."""
