"""canifinetune's measurements on an RTX 4080: torch chooses the kernel, July and October 2026.

Source: DaoyuanLi2816/can-i-finetune-this, src/canifinetune/bench/runner.py and training/runtime.py: `outputs` outlasts
its step. The runner of 0.4.0 has autocast and keeps the dtype of 4-bit layers; that of the first rows has neither.
"""

from benchmarks.rows import Row
from benchmarks.stacks import loop, traced
from benchmarks.stacks.fitcheck import HUB
from benchmarks.stacks.loop import reason_not_traced

__all__ = ["GROUPS", "REQUIREMENTS", "reason_not_traced", "trace_row"]

GROUPS = ("canifinetune/rtx4080 transformers 5.8.1",)
REQUIREMENTS = ("transformers==5.8.1", "peft==0.19.1", "tokenizers==0.22.1", *HUB)


def trace_row(row: Row) -> traced.Found:
    """Trace two steps."""
    is_later = "validation-0.4.0" in row["source"]["file"]
    kind = loop.Loop(keeps_outputs=True, repeats_heads=False, keeps_compute_dtype=is_later, casts=is_later)
    return loop.trace_row(row, kind)
