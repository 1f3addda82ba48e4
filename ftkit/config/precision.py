"""The precisions that a model computes in, and torch's names of them."""

from collections.abc import Mapping
from typing import Literal

SettledPrecision = Literal["fp16", "bf16", "fp32"]
Precision = Literal["auto", SettledPrecision]
"""`auto`: the best that the device multiplies in hardware."""

TORCH_NAMES: Mapping[str, str] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
"""A settled precision to the name of its dtype: the one table, since these rooms do not import torch."""
