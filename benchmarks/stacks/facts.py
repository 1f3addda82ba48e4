"""What a row says of a run, held against what its stack traces: a fact that is not known is the reason to refuse it.

A stack's `FACTS` has a pattern for each field that decides bytes. What does not match is not guessed: the reason why
the row is not traced names the field and what it says. A field that says nothing is `None`, which is a fact only where
a pattern has it.
"""

import re
from collections.abc import Mapping

from benchmarks.rows import Row, card

Facts = Mapping[str, str]
"""Field of a row to the pattern of what its stack traces."""

WORDS = {
    "method": "method",
    "lora_r": "rank of its adapters",
    "lora_target_modules": "set of adapted layers",
    "trainable_notes": "trained part",
    "base_dtype": "type of weights",
    "quant": "kind of quantized layers",
    "compute_dtype": "precision",
    "optimizer": "optimizer",
    "optimizer_bits": "kind of moments",
    "grad_accum": "accumulation",
    "seq_kind": "batch",
    "grad_checkpointing": "checkpointing",
    "attn_impl": "attention",
    "loss_head": "loss",
    "fused_kernels": "use of fused kernels",
    "torch_compile": "compiler",
    "parallel": "sharding",
    "offload": "offload",
    "gpu": "card",
    "framework": "library",
}
"""What the fields that decide bytes are called in a reason; every stack has a pattern for each."""
GAPS = r"[\s,;:()+\"]"
PLAIN = {
    "lora_r": r"\d+|None",
    "optimizer_bits": "None",
    "fused_kernels": "none",
    "torch_compile": "False",
    "parallel": "none",
    "offload": "none",
    "gpu": "(?!None).+",
}
"""One GPU that runs everything as it was written."""
COUNTS = {"micro_batch": "micro-batch", "n_gpus": "number of GPUs"}
"""Whole numbers of a row that every trace takes."""


def words(*known: str) -> str:
    """Return the pattern of a text that is made of known words or phrases alone, in any order.

    Args:
        known: patterns of the words, such as `adamw_torch`.
    """
    one = "|".join(known)
    return f"{GAPS}*(?:{one})(?:{GAPS}+(?:{one}))*{GAPS}*"


def reason_unknown(row: Row, facts: Facts) -> str | None:
    """Return which fact of a row is not one that its stack traces, or None.

    Args:
        row: any.
        facts: field to the pattern of what is traced, whole and in any case.
    """
    for field, pattern in facts.items():
        said: object = row.get(field)
        # `none` says something, and `None` nothing: the two are told apart by their case.
        if re.fullmatch(pattern, str(said), 0 if said is None else re.IGNORECASE) is None:
            word = WORDS[field]
            return f"its {word} is not stated" if said is None else f"its {word} is not known here: {said}"
    return None


def reason_incomplete(row: Row) -> str | None:
    """Return what a row leaves open, or says twice in two ways, that every trace needs, or None."""
    has_adapters = "lora" in row["method"]
    if row["method"] == "full" and (row["lora_r"] is not None or row["lora_target_modules"]):
        return "it says full fine-tuning, and a rank or adapted layers"
    ranks = [("the rank of its adapters", row["lora_r"])] if has_adapters else []
    for what, count in [(f"its {word}", row.get(name)) for name, word in COUNTS.items()] + ranks:
        if type(count) is not int or count < 1:
            return f"{what} is not stated" if count is None else f"{what} is not a number ({count!r})"
    if has_adapters and not row["lora_target_modules"]:
        return "its adapted layers are not stated"
    if (row["n_gpus"] > 1) != (row["parallel"] != "none"):
        return f"its sharding is not traced ({row['n_gpus']} GPUs, {row['parallel']})"
    if row["parallel"] == "none" and str(row.get("zero_stage") or 0) != "0":
        return f"it shares nothing out, and says ZeRO ({row.get('zero_stage')})"
    if row["gpu"] and card(row) is None:
        return f"its card, which decides the attention kernel, is not known ({row['gpu']})"
    return None
