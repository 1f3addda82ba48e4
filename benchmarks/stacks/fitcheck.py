"""fitcheck's own measurements on a T4: eager attention and the memory-efficient kernel, September 2026.

Source: Anassbzdd/fitcheck, scripts/measure.py: `one_step` ends before the next one begins, so nothing of it lives on;
`_install_gqa_sdpa_shim` repeats key and value.
"""

from benchmarks.rows import Row
from benchmarks.stacks import loop, traced
from benchmarks.stacks.loop import reason_not_traced

__all__ = ["GROUPS", "REQUIREMENTS", "reason_not_traced", "trace_row"]

GROUPS = ("fitcheck/t4 transformers 5.17.0",)
HUB = ("huggingface_hub==1.5.0", "httpx==0.28.1", "httpcore==1.0.9", "h11==0.16.0", "anyio==4.9.0")
"""What transformers of the time talks to the hub by; nothing is asked of it here."""
REQUIREMENTS = ("transformers==5.17.0", "peft==0.20.0", *HUB)


def trace_row(row: Row) -> traced.Found:
    """Trace two steps."""
    return loop.trace_row(row, loop.Loop(keeps_outputs=False, repeats_heads=True))
