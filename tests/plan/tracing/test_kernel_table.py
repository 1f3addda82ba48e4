"""The table of the documentation: which kernel each of six models with grouped heads takes on small and old cards."""

from pathlib import Path

import pytest
import torch

from ftkit.config.tree import ModelConfig, RunConfig
from ftkit.machine.hardware import find_gpu
from ftkit.plan.inputs.architectures import find_architecture
from ftkit.plan.tracing.attention_choice import AttentionCall, Kernel, choose

PAGE = Path(__file__).resolve().parents[3] / "docs" / "plan.md"
CARDS = ("t4", "gtx1060", "v100-16gb", "rtx2060")
MODELS = ("smollm2-360m", "tinyllama-1.1b", "llama-3.2-1b", "qwen2.5-1.5b", "qwen3-0.6b", "mistral-7b")


def kernels(name, card, dtype):
    """The kernel of full blocks, that which torch takes of grouped heads, and the kernel of ragged batches."""
    sizes = find_architecture(RunConfig(model=ModelConfig(name=name)))
    heads, groups = sizes.num_attention_heads, sizes.num_key_value_heads
    width = getattr(sizes, "head_dim", None) or sizes.hidden_size // heads
    assert heads > groups

    def taken(key_heads, **others):
        call = AttentionCall((dtype,) * 3, (heads, key_heads, key_heads), (width,) * 3, (1024, 1024), **others)
        return choose(call, find_gpu(card))

    alone = taken(groups, takes_groups=True, is_causal=True)
    repeats = alone is Kernel.MATH
    return taken(heads if repeats else groups, takes_groups=True, is_causal=True), alone, taken(heads, has_mask=True)


@pytest.mark.parametrize("name", MODELS)
def test_the_documentation_names_the_kernel_of_each_model_on_each_card(name):
    cells = []
    for card in CARDS:
        for dtype in (torch.float16, torch.float32):
            full, alone, ragged = kernels(name, card, dtype)
            cells.append(f"{full}, {ragged} ({alone})")
    assert f"| {name} | {' | '.join(cells)} |" in PAGE.read_text(encoding="utf-8")
