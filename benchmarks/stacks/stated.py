"""What a row says of a run on top of transformers and PEFT, read word by word, whichever library or loop it was.

Each fact that moves the peak must be said: in the row, or in its project's own source, which `loops` has. A word that
is not known here, and a fact that nobody states, are reasons why a row is not traced.
"""

import re

import torch

from benchmarks.rows import Row
from benchmarks.stacks import facts, hf, liger
from benchmarks.stacks.facts import words

TYPE = "b?float16|bf16|fp16|float32|fp32"
LAYER = r"(?!embed|lm_head|modules)[a-z0-9]+(?:_[a-z0-9]+)+|query|key|value|dense|fc[12]|lin[12]|W[io]|Wqkv"
UPCAST = r"prepare_model_for_kbit_training(?: \(norms, embeddings, head to fp32\))?"
FACTS = facts.PLAIN | {
    "method": r"full|lora|qlora|lora \(rslora\)|lora\+",
    "lora_target_modules": rf"None|all[- ]linear|{words(LAYER)}",
    "trainable_notes": "None|"
    + words(
        r"(?:lora_)?alpha \w+",
        r"dropout 0(?:\.\d+)?",
        "bias none",
        rf"(?:adapters|LoRA weights|LoRA params) (?:in )?(?:{TYPE})",
        "all(?: parameters)?",
        r"r ?\d+",
        r"\d+ labels",
    ),
    "base_dtype": words(TYPE, "bnb", "[nf][fp]4", "double quant"),
    "quant": "None|"
    + words(
        "bnb",
        "[nf][fp]4",
        "(?:no )?double quant",
        rf"compute (?:{TYPE})",
        rf"quant_storage (?:uint8|{TYPE})",
        f"(?:no )?{UPCAST}",
    ),
    "compute_dtype": words(
        "no autocast",
        "autocast",
        "pure",
        f"(?:{TYPE})(?:-true|-mixed)?",
        "16-mixed",
        "GradScaler",
        f"--(?:{TYPE})",
        f"bnb_4bit_compute_dtype (?:{TYPE})",
        r"residual stream fp32 \(fp32 embeddings\)",
        rf"(?:{TYPE}) base, fp32 adapters \(autocast_adapter_dtype\)",
    ),
    "optimizer": words(
        r"(?:torch\.optim\.)?AdamW?",
        r"(?:torch\.optim\.)?SGD",
        "adamw_torch(?:_fused)?",
        r"(?:bnb|bitsandbytes)(?:\.optim\.)?",
        r"(?:bnb\.optim\.)?(?:Paged)?AdamW(?:8bit|32bit)?",
        "paged_adamw_(?:32|8)bit",
        "adamw_(?:bnb_)?8bit",
        "fused",
        "foreach default",
        r"(?:lr|eps) [\d.e-]+(?: set)?",
        "fp32 states",
        "32-bit",
        "HF Trainer default",
    ),
    "optimizer_bits": "None|8|32",
    "grad_accum": r"\d+",
    "seq_kind": words(
        "fixed",
        r"\d+",
        "(?:synthetic|full-length|random|tokens?|token ids|ids)",
        "labels=inputs",
        "all-token labels",
        "no attention mask",
        "attention mask all ones",
        "no padding",
    ),
    "grad_checkpointing": "True|False",
    "attn_impl": "eager|flash_attention_2|"
    r"sdpa(?:, pinned to EFFICIENT_ATTENTION, K/V expanded by repeat_interleave before the call \(GQA shim\))?",
    "loss_head": words(
        "(?:Liger )?fused linear cross[- ]entropy",
        "HF CausalLM (?:loss|CE)(?: on full logits)?",
        "labels passed to the model",
        "(?:logits )?upcast to fp32",
        "lm_head weights fp32",
        '"?stock"?',
        "(?:sequence|[0-9]+-way) classification",
        "no LM head",
    ),
    "fused_kernels": "none|Liger(?:[- ]kernel)?",
    "torch_compile": "True|False",
    "parallel": words("none", "DDP", "FSDP[12]", "ZeRO-[123]", "FULL_SHARD", "transformer wrap", "BACKWARD_PRE")
    + "|FSDP1 .*, no offload",
    "offload": "none|optimizer(?: and params)? to CPU",
    "framework": words(
        "(?:plain )?transformers",
        r"\+",
        "HF",
        "(?:HF )?Trainer",
        "PEFT",
        "accelerate",
        "TRL",
        "SFTTrainer",
        "hand-written loop",
        r"scripts/measure\.py",
        r"\d warm-up steps?",
        r"then \d measured steps?",
        r"\d steps?",
        r"zero_grad\(set_to_none\) at its start",
        '"?training_backend transformers"?',
        "use_reentrant=(?:True|False)",
        "outputs end with the step",
        "outputs outlast the step",
        "4-bit layers keep their type",
        "4-bit weights packed on the card",
    ),
}
TRL_OF_THE_TRAINER = 16
"""Minor version of TRL 0 from which its trainer computes entropy and accuracy of the logits too (sft_trainer.py,
compute_loss, of 0.16)."""


def reason_unstated(row: Row) -> str | None:
    """Return which fact of a row is not stated or not known, or None."""
    return facts.reason_unknown(row, FACTS) or _contradiction(row) or _unstated_types(row) or _unstated_loop(row)


def _contradiction(row: Row) -> str | None:
    """Return what of a row's method does not go together."""
    is_packed, bits = row["method"] == "qlora", row.get("optimizer_bits")
    if row["method"] != "full" and "dropout" not in notes(row):
        return "the dropout of its adapters is not stated"
    if liger.is_used(row) != ("fused linear" in (row["loss_head"] or "").lower()):
        return f"its fused kernels are {row['fused_kernels']}, and its loss is {row['loss_head']}"
    if is_packed != bool(row["quant"]):
        return f"its method is {row['method']}, and its quantized layers are {row['quant']}"
    lengths = re.findall(r"\d+", row["seq_kind"])
    if lengths and str(row["seq_len"]) not in lengths:
        return f"its sequences have {row['seq_len']} tokens, and its batch is {row['seq_kind']}"
    if bits is not None and (bits == 8) != ("8bit" in row["optimizer"].lower()):
        return f"its optimizer is {row['optimizer']}, and its moments have {bits} bits"
    named = re.search(r"\br ?(\d+)", notes(row))
    if named and int(named[1]) != row["lora_r"]:
        return f"its rank is {row['lora_r']}, and its trained part {notes(row)}"
    if len(types := {hf.TYPES[one] for one in re.findall(TYPE, row["base_dtype"])}) > 1:
        return f"its weights are of {len(types)} types, and which has which is not stated ({row['base_dtype']})"
    return None


def _unstated_types(row: Row) -> str | None:
    """Return which type of a row is not stated."""
    said = row["quant"] or ""
    if weights_type(row) is None:
        return f"the type of weights that are not quantized is not stated ({row['base_dtype']})"
    if said and "double quant" not in said:
        return f"whether its scales are quantized too is not stated ({said})"
    if said and "prepare_model_for_kbit_training" not in said:
        return f"whether what is not quantized becomes fp32 is not stated ({said})"
    if said and packed_compute_type(row) is None:
        return f"what its quantized layers compute in is not stated ({said})"
    if not re.search(r"autocast|mixed|pure|true|^fp32|^float32", row["compute_dtype"]):
        return f"whether it ran under autocast is not stated ({row['compute_dtype']})"
    return None


def _unstated_loop(row: Row) -> str | None:
    """Return what of a row's loop is not stated."""
    framework = row["framework"]
    if row["grad_checkpointing"] and "use_reentrant" not in framework:
        return "whether its checkpoints are reentrant is not stated"
    if is_own_loop(row) and "outputs" not in framework:
        return "whether the outputs of a step outlast it is not stated"
    trl = re.search(r"\btrl[ =]+0\.(\d+)", row.get("framework_version") or "")
    if re.search("trl|sfttrainer", framework, re.IGNORECASE) and (trl is None or int(trl[1]) >= TRL_OF_THE_TRAINER):
        return "TRL's own trainer computes entropy and accuracy of the logits too, which are not traced"
    return None


def notes(row: Row) -> str:
    """Return what a row says of what trains."""
    return row.get("trainable_notes") or ""


def is_own_loop(row: Row) -> bool:
    """Return whether a row's loop was written by hand; else it is the Trainer's."""
    return "hand-written loop" in row["framework"] or "training_backend" in row["framework"]


def keeps_outputs(row: Row) -> bool:
    """Return whether the logits of a step live until those of the next one are there."""
    return "outputs outlast" in row["framework"]


def loads_onto_card(row: Row) -> bool:
    """Return whether weights were read onto the card, and packed there."""
    return "packed on the card" in row["framework"] and bool(row["quant"])


def is_reentrant(row: Row) -> bool:
    """Return whether checkpoints run their part without a graph first."""
    return "use_reentrant=true" in row["framework"].lower()


def weights_type(row: Row) -> torch.dtype | None:
    """Return the dtype of the weights that are not quantized; None: not stated."""
    return hf.type_in(row["base_dtype"])


def packed_compute_type(row: Row) -> torch.dtype | None:
    """Return the dtype that 4-bit layers were asked to compute in; None: not stated."""
    said = f"{row['quant']} {row['compute_dtype']}"
    found = re.search(rf"(?:bnb_4bit_compute_dtype|compute) ({TYPE})", said)
    return hf.TYPES[found[1]] if found else None


def quantizes_scales(row: Row) -> bool:
    """Return whether the scales of 4-bit layers are quantized too."""
    return "double quant" in (row["quant"] or "").replace("no double quant", "")


def prepares(row: Row) -> bool:
    """Return whether PEFT made fp32 of all weights that are not quantized."""
    return "prepare_model" in (row["quant"] or "").replace("no prepare_model", "")


def dropout(row: Row) -> float:
    """Return the dropout of a row's adapters, 0 where it has none."""
    found = re.search(r"dropout (\d+(?:\.\d+)?)", notes(row))
    return float(found[1]) if found else 0.0


def adapters_type(row: Row) -> torch.dtype:
    """Return the dtype of adapters: fp32, as PEFT makes those of half precision, where nothing else is said."""
    found = re.search(rf"(?:adapters|LoRA weights|LoRA params) (?:in )?({TYPE})", notes(row))
    return hf.TYPES[found[1]] if found else torch.float32
