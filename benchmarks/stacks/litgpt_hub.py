"""LitGPT's table of recipes: GPUs of 24 GB, Alpaca with at most 512 tokens a sample; later versions of the same code.

Source: Lightning-AI/litgpt, config_hub/finetune/README.md. How long the longest sample was is not published: what is
traced here, 512 tokens, is an upper bound.
"""

from benchmarks.stacks.litgpt import FACTS, reason_not_traced, trace_row

__all__ = ["FACTS", "GROUPS", "REQUIREMENTS", "reason_not_traced", "trace_row"]

GROUPS = ("litgpt/config_hub",)
REQUIREMENTS = (
    "litgpt==0.5.3",
    "lightning==2.4.0",
    "bitsandbytes==0.42.0",
    "setuptools==69.5.1",
    "lightning-utilities==0.11.9",
    "torchmetrics==1.4.3",
)
