"""fitcheck's later sessions, which ran earlier versions of the libraries; see `fitcheck`."""

from benchmarks.stacks.fitcheck import HUB, trace_row
from benchmarks.stacks.loop import reason_not_traced

__all__ = ["GROUPS", "REQUIREMENTS", "reason_not_traced", "trace_row"]

GROUPS = ("fitcheck/t4 transformers 5.0.0",)
REQUIREMENTS = ("transformers==5.0.0", "peft==0.19.1", "tokenizers==0.22.1", *HUB)
