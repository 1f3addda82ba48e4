"""What a row says of a run, held against what its stack traces: a fact that is not known is the reason to refuse it.

A stack's `FACTS` has a pattern for each field that decides bytes. What does not match is not guessed: the reason why
the row is not traced names the field and what it says. A field that says nothing is `None`, which is a fact only where
a pattern has it.
"""

import re
from collections.abc import Mapping

from benchmarks.rows import Row

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
}
"""One GPU that runs everything as it was written."""


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
