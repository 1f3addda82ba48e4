"""What a stack does on a card decides its trace, as runs of our own on an H200 have shown."""

import pytest
import torch
from torch.nn import functional

from benchmarks import runner, truth
from benchmarks.stacks import autocast, hf_any, traced
from ftkit.step.observer import Phase
from tests.benchmarks.stated_rows import FULL, PACKED, SMALL, STATED

BF16 = torch.bfloat16
WIDE = STATED["arch"] | {"hidden": 512, "intermediate": 1024, "layers": 1, "kv_heads": 4}
"""A model whose matrices are large enough for moments to be paged."""
TOKENS = 128


def _attended(width, **said):
    """Return what attention under autocast leaves on a tape: a query and a key in fp32, a value in bf16."""
    with traced.computing(), autocast.cuda_lists(), traced.recorder() as recorder:
        query, key, value = (
            torch.empty(1, 2, TOKENS, width, dtype=dtype, requires_grad=True)
            for dtype in (torch.float32, torch.float32, BF16)
        )
        with torch.autocast("cpu", BF16), recorder.during(Phase.FORWARD):
            out = functional.scaled_dot_product_attention(query, key, value, **said)
    return out, [birth for birth in recorder.tape.births if birth.phase is Phase.FORWARD]


def test_attention_under_autocast_has_half_precision_before_its_kernel_is_chosen():
    out, births = _attended(64, is_causal=True)
    assert out.dtype == BF16
    assert not [birth for birth in births if birth.shape[-2:] == (TOKENS, TOKENS)]


def test_plain_math_under_autocast_is_below_it_and_multiplies_in_fp32():
    # Flash attention takes no mask, and the memory-efficient kernel no heads of 63.
    out, births = _attended(63, attn_mask=torch.zeros(TOKENS, TOKENS, requires_grad=True))
    assert out.dtype == BF16
    scores = [birth.dtype for birth in births if birth.op.startswith("bmm.") and birth.shape[-2:] == (TOKENS, TOKENS)]
    assert scores == ["float32"]


def test_packed_layers_are_adapted_by_peft_as_packed_layers():
    model = hf_any.build(STATED | PACKED)
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert {type(module).__module__ for module in adapted} == {"peft.tuners.lora.bnb"}


@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", "adamw_8bit"])
def test_of_paged_moments_in_8_bits_the_scales_of_their_blocks_stay_on_the_card(optimizer):
    row = STATED | FULL | {"arch": WIDE, "optimizer": optimizer, "optimizer_bits": 8, "micro_batch": 1}
    tape = hf_any.trace_row(row)
    made = [birth for birth in tape.births if birth.phase is Phase.OPTIMIZER and birth.step == 1]
    weight = WIDE["hidden"] * WIDE["intermediate"]  # of three matrices of an MLP, each with two moments
    assert len([birth for birth in made if birth.shape == (weight // 256,)]) == 6
    moments = [birth for birth in made if birth.dtype == "uint8" and birth.size == weight]
    assert len(moments) == (0 if "paged" in optimizer else 6)


@pytest.mark.parametrize(("gpu", "mebibytes"), [("NVIDIA H200", 32), ("A100-SXM4-80GB", 8.125), (None, 8.125)])
def test_workspaces_of_the_trace_are_those_of_the_rows_card(gpu, mebibytes):
    tape = hf_any.trace_row(STATED | FULL | {"gpu": gpu, "arch": SMALL | {"arch_class": "LlamaForCausalLM"}})
    spaces = [birth.size for birth in tape.births if birth.dtype == "uint8" and birth.step == 0]
    assert spaces == [mebibytes * 2**20] * 2


def test_rows_of_two_cards_are_traced_twice(tmp_path, monkeypatch):
    cards = []

    def trace_row(row):
        cards.append(row["gpu"])
        return "a trace of which there is no figure"

    monkeypatch.setattr(hf_any, "trace_row", trace_row)
    rows = [STATED | {"id": gpu, "gpu": gpu} for gpu in ("RTX 3090", "NVIDIA H200")]
    runner.answer_all(truth.QUESTION, [], "hf_any", rows, tmp_path)
    assert cards == ["RTX 3090", "NVIDIA H200"]
