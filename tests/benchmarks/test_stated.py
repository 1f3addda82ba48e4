"""Rows of stacks that nobody wrote down: each fact is stated, and traced as stated, or the row is refused by name."""

from functools import cache

import pytest
import torch

from benchmarks import stacks
from benchmarks.stacks import fms, fourbit, hf, hf_any, stated, versions
from tests.benchmarks.stated_rows import FULL, PACKED, STATED, VERSIONS

ZERO = {"n_gpus": 2, "parallel": "ZeRO-2"}
REFUSED = [
    ({"method": "ia3"}, "method"),
    ({"method": "vera"}, "method"),
    ({"method": "oft"}, "method"),
    ({"method": "prompt tuning"}, "method"),
    ({"method": "dora"}, "method"),
    ({"lora_r": None}, "rank of its adapters is not stated"),
    ({"method": "full"}, "full fine-tuning, and a rank"),
    ({"lora_target_modules": None}, "adapted layers"),
    ({"lora_target_modules": "all except the head"}, "all except the head"),
    ({"lora_target_modules": "q_proj v_proj, modules_to_save lm_head"}, "modules_to_save"),
    ({"lora_target_modules": "q_proj, embed_tokens"}, "embed_tokens"),
    ({"trainable_notes": None}, "dropout of its adapters is not stated"),
    ({"trainable_notes": "dropout 0.0, bias all"}, "bias all"),
    ({"trainable_notes": "dropout 0.0, use_dora"}, "use_dora"),
    ({"framework": "transformers Trainer"}, "checkpoints are reentrant is not stated"),
    ({"framework": "axolotl, use_reentrant=False"}, "axolotl"),
    ({"framework": "TRL SFTTrainer, use_reentrant=False"}, "entropy"),
    ({"framework": "PEFT, hand-written loop, use_reentrant=False"}, "outputs of a step outlast it"),
    ({"framework_version": None}, "version of transformers is not stated"),
    ({"framework_version": "transformers 5.8.1"}, "version of peft is not stated"),
    ({"framework_version": "transformers 4.30.2, peft 0.4.0"}, "too old to be traced here (4.30.2)"),
    (PACKED | {"quant": "GPTQ int4, groups of 32"}, "GPTQ int4, groups of 32"),
    (PACKED | {"quant": "awq"}, "awq"),
    (PACKED | {"quant": "bnb nf4"}, "scales are quantized too is not stated"),
    (PACKED | {"quant": "bnb nf4, double quant"}, "becomes fp32 is not stated"),
    (PACKED | {"quant": "bnb nf4, no double quant, no prepare_model_for_kbit_training"}, "compute in is not stated"),
    (PACKED | {"base_dtype": "bnb nf4"}, "type of weights that are not quantized"),
    ({"quant": PACKED["quant"]}, "its method is lora"),
    ({"method": "qlora"}, "its method is qlora"),
    ({"compute_dtype": "bf16"}, "autocast is not stated"),
    ({"compute_dtype": "fp8 autocast"}, "fp8"),
    ({"optimizer": "GaLoreAdamW"}, "GaLoreAdamW"),
    ({"optimizer": "Lion"}, "Lion"),
    ({"optimizer": "AdamW, optimizer_in_bwd"}, "optimizer_in_bwd"),
    ({"optimizer": "adamw_torch_4bit"}, "4bit"),
    ({"grad_accum": "global batch 128"}, "global batch 128"),
    ({"grad_accum": None}, "accumulation"),
    ({"seq_kind": "packed"}, "packed"),
    ({"attn_impl": None}, "attention"),
    ({"attn_impl": "flash_attention_3"}, "flash_attention_3"),
    ({"attn_impl": "flash_attention_2", "framework_version": "transformers 4.46.3, peft 0.13.2"}, "since 4.48"),
    ({"loss_head": "fused linear cross-entropy"}, "fused linear"),
    ({"loss_head": None}, "loss"),
    ({"fused_kernels": "Liger"}, "Liger"),
    ({"fused_kernels": None}, "fused kernels"),
    ({"torch_compile": None}, "compiler"),
    ({"torch_compile": True}, "compiled around checkpoints"),
    ({"parallel": None}, "sharding"),
    ({"parallel": "tensor parallel"}, "tensor parallel"),
    ({"n_gpus": 2}, "sharding is not traced"),
    ({"offload": "activations to CPU"}, "activations to CPU"),
    ({"n_gpus": 2, "parallel": "FSDP2", "offload": "optimizer to CPU"}, "offload"),
    ({"gpu": "a card of mine"}, "a card of mine"),
    ({"arch": None}, "sizes of its model"),
    ({"arch": STATED["arch"] | {"vocab": None}}, "'vocab' is not stated"),
    ({"arch": STATED["arch"] | {"heads": 0}}, "'heads' is not stated"),
    ({"arch": STATED["arch"] | {"heads": 5}}, "heads, whose width is not stated"),
    ({"arch": STATED["arch"] | {"arch_class": "MyForCausalLM"}}, "not in transformers"),
    ({"arch": STATED["arch"] | {"arch_class": "MixtralForCausalLM"}}, "num_experts_per_tok is not stated"),
    ({"arch": STATED["arch"] | {"arch_class": "GemmaForCausalLM"}}, "width of its model's heads"),
    ({"arch": STATED["arch"] | {"arch_class": "MistralForCausalLM"}, "seq_len": 8192}, "has a window is not stated"),
    ({"lora_target_modules": "q_prj v_proj"}, "no linear layer q_prj"),
    ({"lora_target_modules": "v_proj input_layernorm"}, "no linear layer input_layernorm"),
    ({"lora_r": "8"}, "rank of its adapters is not a number ('8')"),
    ({"trainable_notes": "r 16, alpha 16, dropout 0.0"}, "its rank is 8"),
    ({"micro_batch": None}, "micro-batch is not stated"),
    ({"micro_batch": 0}, "micro-batch is not a number"),
    ({"base_dtype": "float16 bfloat16"}, "weights are of 2 types"),
    ({"optimizer_bits": 8}, "moments have 8 bits"),
    ({"optimizer": "paged_adamw_8bit", "optimizer_bits": 32}, "moments have 32 bits"),
    ({"gpu": None}, "card is not stated"),
    ({"seq_kind": "fixed 512, random token ids"}, "have 16 tokens"),
    ({"zero_stage": 3}, "shares nothing out"),
    ({"framework_version": f"{VERSIONS}, unsloth 2025.3.1"}, "unsloth"),
    ({"framework_version": f"{VERSIONS}, torch 1.13.1"}, "torch 2"),
    (ZERO | {"optimizer": "SGD"}, "optimizer is not ftkit's"),
    (ZERO | {"optimizer": "adamw_8bit"}, "optimizer is not ftkit's"),
    (ZERO | {"fused_kernels": "Liger", "loss_head": "fused linear cross-entropy"}, "fused kernels"),
    (ZERO | {"attn_impl": "flash_attention_2"}, "attention is not traced under ZeRO"),
    (ZERO | {"lora_target_modules": "query_key_value"}, "not ftkit's under ZeRO"),
]


@pytest.mark.parametrize(("fact", "reason"), REFUSED)
def test_a_fact_that_is_not_stated_or_not_known_is_the_reason_why_a_row_is_refused(fact, reason):
    said = stacks.reason_not_traced(STATED | fact)
    assert said is not None
    assert reason in said


@pytest.mark.parametrize(
    "fact",
    [
        {},
        FULL,
        PACKED,
        PACKED | {"quant": "bnb fp4, no double quant, compute fp16, no prepare_model_for_kbit_training"},
        {"lora_target_modules": "all-linear"},
        {"trainable_notes": "r 8, alpha 32, dropout 0.05, LoRA params bf16"},
        {"optimizer": "paged_adamw_8bit"},
        {"optimizer": "AdamW fused, lr 2e-4"},
        {"framework": "plain transformers + PEFT, hand-written loop, use_reentrant=True, outputs end with the step"},
        {"framework": "TRL, use_reentrant=False", "framework_version": f"{VERSIONS}, trl 0.13.0"},
        {"compute_dtype": "bf16 autocast (--bf16)", "n_gpus": 2, "parallel": "FSDP2"},
    ],
)
def test_a_row_that_states_every_fact_is_traced(fact):
    assert stacks.reason_not_traced(STATED | fact) is None


@pytest.mark.parametrize(
    ("group", "fact", "reason"),
    [
        ("canifinetune/rtx4080 transformers 5.8.1", {}, None),
        ("canifinetune/rtx4080 transformers 5.8.1", {"optimizer": "Lion"}, "Lion"),
        ("canifinetune/rtx4080 transformers 5.8.1", {"lora_target_modules": "all-linear"}, None),
        ("fitcheck/t4 transformers 5.0.0", {}, None),
        ("fitcheck/t4 transformers 5.0.0", {"gpu": "a card of mine"}, "a card of mine"),
        ("fitcheck/t4 transformers 5.0.0", {"framework": "PEFT, hand-written loop"}, "reentrant is not stated"),
    ],
)
def test_of_a_loop_whose_source_was_read_a_row_need_not_say_what_the_source_does(group, fact, reason):
    reentrant = ", use_reentrant=False" if "fitcheck" in group else ""
    row = STATED | {"group": group, "framework": f"plain transformers + PEFT, hand-written loop{reentrant}"} | fact
    said = stacks.reason_not_traced(row)
    assert (said is None) if reason is None else (reason in said)


def test_the_versions_that_a_row_names_are_those_that_are_installed_and_traced():
    assert stacks.judge_of(STATED) == "hf_any"  # this project's own
    judge = stacks.judge_of(STATED | {"framework_version": "torch 2.4.1, transformers 4.46.3, peft 0.13.2"})
    assert judge == "hf_any transformers==4.46.3,peft==0.13.2"
    assert set(stacks.pins(judge)) == {
        "transformers==4.46.3", "peft==0.13.2", "tokenizers==0.20.3", versions.OLD_HUB
    }  # fmt: skip
    assert "tokenizers==0.22.1" in versions.complete(("transformers==5.15.0",))
    assert versions.complete(("transformers==5.17.0",)) == ("transformers==5.17.0", *versions.HUB)
    packed = STATED | PACKED | {"framework_version": "bitsandbytes 0.45.0"}
    assert stacks.judge_of(packed) == "hf_any bitsandbytes==0.45.0"
    assert stacks.judge_of(packed | FULL | {"quant": None}) == "hf_any"  # nothing of it runs


def test_a_stack_of_fixed_versions_refuses_a_row_that_names_others():
    row = {"framework_version": "torch 2.4.1, transformers 4.46.0, peft 0.13.2"}
    assert versions.reason_of_others(row, fms.REQUIREMENTS) == "it ran transformers 4.46.0, and 4.48.1 would be traced"
    assert versions.reason_of_others({"framework_version": "transformers 4.48, peft 0.13"}, fms.REQUIREMENTS) is None
    tune = {"framework": "torchtune", "framework_version": "v0.3"}
    assert versions.reason_of_others(tune, ("torchtune==0.4.0",)) == "it ran torchtune 0.3, and 0.4.0 would be traced"


@pytest.mark.parametrize(
    ("fact", "half"),
    [
        ({"compute_dtype": "bf16 autocast", "base_dtype": "float16"}, torch.bfloat16),
        ({"compute_dtype": "no autocast", "base_dtype": "float16"}, torch.float16),
        ({"compute_dtype": "16-mixed", "base_dtype": "float32"}, torch.float16),
        ({"compute_dtype": "fp32", "base_dtype": "float32"}, torch.bfloat16),
    ],
)
def test_half_precision_is_that_of_the_computation_before_that_of_the_weights(fact, half):
    assert hf.half(STATED | fact) == half


@pytest.mark.parametrize(
    ("said", "dtype"),
    [
        ("no autocast; float16 base, fp32 adapters (autocast_adapter_dtype)", None),
        ("no autocast (pure bfloat16)", None),
        ("autocast bf16 (--bf16)", torch.bfloat16),
        ("bf16-mixed", torch.bfloat16),
    ],
)
def test_a_step_is_cast_where_a_row_says_autocast_of_the_step(said, dtype):
    assert hf.mixed(STATED | {"compute_dtype": said}) == dtype


def test_what_a_row_says_of_4_bit_layers_is_read_from_it():
    row = STATED | PACKED
    assert (stated.quantizes_scales(row), stated.prepares(row)) == (True, True)
    assert stated.packed_compute_type(row) == torch.bfloat16
    other = row | {"quant": "bnb nf4, no double quant, compute fp16, no prepare_model_for_kbit_training"}
    assert (stated.quantizes_scales(other), stated.prepares(other)) == (False, False)
    assert stated.packed_compute_type(other) == torch.float16


def test_gptq_layers_have_as_many_scales_as_the_groups_that_a_row_states():
    row = STATED | {"model_id": "mistralai/Mistral-7B-v0.1", "quant": "GPTQ int4 (auto-gptq triton v2)"}
    assert fms.gptq_group(row) == 128
    assert fms.gptq_group(row | {"quant": f"{row['quant']}, groups of 32"}) == 32
    assert fourbit.GptqLinear(256, 64, 32, None).scales.shape == (8, 64)
    assert fourbit.GptqLinear(256, 64, -1, None).scales.shape == (1, 64)
    unknown = row | {"model_id": "meta-llama/Llama-2-70b-hf", "group": "fms-acceleration/a100_80gb"}
    assert "groups of its quantized layers are not stated" in stacks.reason_not_traced(unknown)


@pytest.fixture(scope="module")
def peak_of():
    """The traced peak of a row with other facts, each traced once."""

    @cache
    def traced(**fact):
        return hf_any.trace_row(STATED | {"arch": STATED["arch"] | {"layers": 1}} | fact).peak_bytes()

    return traced


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({}, {"trainable_notes": "dropout 0.1"}),
        ({"trainable_notes": "dropout 0.0, LoRA params bf16"}, {}),
        ({}, {"framework": "transformers, hand-written loop, use_reentrant=False, outputs outlast the step"}),
        ({}, {"framework": "transformers Trainer, use_reentrant=True"}),
        (PACKED | {"quant": PACKED["quant"].replace("prepare", "no prepare")}, PACKED),
    ],
)
def test_a_fact_that_a_row_states_moves_what_is_traced(less, more, peak_of):
    assert peak_of(**less) < peak_of(**more)


def test_attention_that_is_pinned_with_repeated_heads_takes_the_efficient_kernel_on_a_t4():
    pinned = "sdpa, pinned to EFFICIENT_ATTENTION, K/V expanded by repeat_interleave before the call (GQA shim)"
    row = STATED | {"gpu": "Tesla T4", "base_dtype": "float16"}
    names = [
        {birth.op.partition(".")[0] for birth in hf_any.trace_row(row | {"attn_impl": said}).births}
        for said in ("sdpa", pinned)
    ]
    assert ["_safe_softmax" in made for made in names] == [True, False]
    assert "_scaled_dot_product_efficient_attention" in names[1]
