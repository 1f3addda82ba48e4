"""A handful of published answers: LitGPT's LoRA on an A100 with 40 GB (tutorials/resource-tables.md, October 2023)."""

import re

import pytest

from benchmarks import own_plan, stacks, verdict_table
from benchmarks.rows import card, room
from benchmarks.stacks import hf_any
from benchmarks.stacks.traced import events_of
from benchmarks.verdicts import judges
from ftkit.machine.contexts import OLDER_BYTES
from ftkit.machine.hardware import find_gpu
from ftkit.observe.allocator import replay
from ftkit.observe.tape import Tape
from ftkit.plan.tracing import cuda
from ftkit.step.observer import Phase
from tests.benchmarks.stated_rows import FULL, PACKED, STATED

LLAMA = {"arch_class": "LlamaForCausalLM", "vocab": 32000}
SIZES = {
    "7b": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "intermediate": 11008},
    "13b": {"hidden": 5120, "layers": 40, "heads": 40, "kv_heads": 40, "intermediate": 13824},
}


def published(size, micro_batch, **more):
    return {
        "id": f"{size}-{micro_batch}",
        "group": "litgpt/resource-tables",
        "model_id": f"meta-llama/Llama-2-{size}-hf",
        "arch": LLAMA | SIZES[size],
        "method": "lora",
        "lora_r": 8,
        "lora_target_modules": "query,value (lora_query, lora_value of fused attn)",
        "base_dtype": "bfloat16",
        "quant": None,
        "compute_dtype": "bf16-true (no autocast)",
        "loss_head": "lm_head applied in 128-token chunks + per-chunk cross_entropy",
        "fused_kernels": "none",
        "parallel": "none",
        "framework": "lit-gpt",
        "grad_accum": "global batch 128",
        "seq_kind": "fixed at peak (longest sample first)",
        "attn_impl": "torch SDPA",
        "trainable_notes": "lora_alpha 16, dropout 0.05; LoRA weights in bf16",
        "optimizer": "torch.optim.AdamW",
        "micro_batch": micro_batch,
        "seq_len": 1304,
        "grad_checkpointing": False,
        "torch_compile": False,
        "offload": "none",
        "n_gpus": 1,
        "gpu": "A100-SXM4-40GB",
        "date": "2023-10-20",
        "value_bytes": None,
        "confidence": "high",
    } | more


@pytest.mark.parametrize(("size", "micro_batch", "fits"), [("7b", 1, True), ("7b", 2, True), ("13b", 2, False)])
def test_the_planner_answers_as_the_published_run_did(size, micro_batch, fits):
    row = published(size, micro_batch)
    assert own_plan.judge(row, find_gpu("a100-40gb"))["fits"] is fits


def test_a_card_without_bf16_is_judged_in_fp16():
    assert own_plan.judge(published("7b", 1), find_gpu("t4"))["fits"] is False


def test_a_card_is_found_in_the_words_of_the_tables_and_leaves_room_less_the_context():
    row = published("7b", 1)
    assert room(row) == find_gpu("a100-40gb").memory_bytes - OLDER_BYTES
    assert card(row | {"gpu": "2x RTX 3090"}) == find_gpu("rtx3090")
    assert card(row | {"gpu": "A100 (80GB implied)"}) == find_gpu("a100-80gb")
    assert room(row | {"gpu": None}) is None


def test_its_stack_and_ftkit_both_judge_what_both_can_say_and_nobody_a_card_without_a_name():
    row = published("7b", 1)
    assert judges(row) == ["litgpt", "ftkit"]
    assert judges(row | {"torch_compile": True, "offload": "activations"}) == []
    assert judges(row | {"gpu": None}) == []


@pytest.mark.parametrize(
    ("stated", "word"),
    [
        ({"layers": 31}, "'layers' is 31, and meta-llama/Llama-2-7b-hf, which is built by its name, has 32"),
        ({"kv_heads": 8}, "'kv_heads' is 8"),
        ({"arch_class": "MistralForCausalLM"}, "'arch_class' is MistralForCausalLM"),
        ({"num_labels": 2}, "'num_labels' is 2, .* has none that is known here"),
    ],
)
def test_a_row_whose_sizes_are_not_those_of_the_model_that_its_stack_builds_by_name_is_refused(stated, word):
    row = published("7b", 1)
    assert re.search(word, stacks.reason_not_traced(row | {"arch": row["arch"] | stated}))
    assert stacks.reason_not_traced(row | {"arch": None}) is None
    assert re.search("has none that is known here", stacks.reason_not_traced(row | {"model_id": "somebody/elses"}))


TUNE = FULL | {
    "group": "torchtune/README_flags", "model_id": "meta-llama/Llama-3.2-3B", "trainable_notes": "all",
    "compute_dtype": "bf16 pure", "seq_kind": "fixed (packed)", "attn_impl": "torch SDPA (causal)",
    "loss_head": "CEWithChunkedOutputLoss", "framework": "torchtune", "framework_version": None,
}  # fmt: skip
VIT = FULL | {
    "group": "rasbt/pytorch-memory-optim", "model_id": "torchvision/vit_l_16", "trainable_notes": None,
    "base_dtype": "float32", "compute_dtype": "fp32", "optimizer": "Adam (lr 5e-5)", "grad_checkpointing": False,
    "seq_kind": "fixed 224x224 image, patch 16", "attn_impl": "eager", "loss_head": "10-way classification",
    "gpu": None, "framework": "torch", "framework_version": None,
}  # fmt: skip


@pytest.mark.parametrize("row", [published("7b", 1, group="litgpt/config_hub"), STATED | TUNE, STATED | VIT])
def test_each_stack_of_own_code_holds_a_rows_sizes_against_its_model(row):
    assert stacks.reason_not_traced(row | {"arch": None}) is None
    said = stacks.reason_not_traced(row | {"arch": LLAMA | SIZES["7b"] | {"hidden": 128}})
    assert f"{row['model_id']}, which is built by its name" in said


def test_the_page_shows_a_run_that_fitted_and_was_called_unfit():
    fitted = published("7b", 1, value_bytes=21_300_000_000)
    said = {
        "7b-1 litgpt": {"reserved_bytes": 2**35, "fits": False, "fits_grown": False},
        "7b-4 litgpt": {"reserved_bytes": 2**36, "fits": False, "fits_grown": False},
    }
    page = verdict_table.page([fitted, published("7b", 4), published("13b", 1)], said, room, lambda _: "not run")
    assert "| 7b-1 | Llama-2-7b-hf | lora, 1 x 1304 | A100-SXM4-40GB |" in page
    assert "| litgpt/resource-tables | 1 | 1 | 0 | 0 | 0 | 0 |" in page
    assert "| 64.00 | does not fit | - | - | out of memory |" in page
    assert "| not run | 13b-1 |" in page
    assert "\n13b-1: not judged (not run).\n" in page
    said["7b-1 litgpt"]["fits_grown"] = True
    page = verdict_table.page([fitted], said, room, lambda _: "")
    assert "| 32.00 | if segments grow | - | - | 19.84 |" in page.partition("held by segments that grow")[2]
    assert "| litgpt/resource-tables | 1 | 1 | 1 | 0 | 0 | 0 |" in page


def test_the_page_says_that_a_run_that_ftkit_could_hold_is_no_verdict_on_the_published_one():
    row = published("7b", 4)
    found = {
        f"{row['id']} litgpt": {"reserved_bytes": 45 * 2**30, "fits": False, "fits_grown": False},
        f"{row['id']} ftkit": {"reserved_bytes": 38 * 2**30, "fits": True, "fits_grown": True},
    }
    page = verdict_table.page([row], found, room, lambda _: "")
    assert f"\n{row['id']}: the stack's own trace agrees" in page
    del found[f"{row['id']} ftkit"]
    assert "the stack's own trace agrees" not in verdict_table.page([row], found, room, lambda _: "")


def test_rows_of_any_library_on_transformers_are_traced_by_what_they_say():
    sizes = {"hidden": 1024, "layers": 4, "heads": 4, "kv_heads": 4, "intermediate": 4096, "vocab": 256}
    row = STATED | FULL | {"arch": LLAMA | sizes, "seq_len": 32, "grad_accum": 4, "n_gpus": 4}
    row |= {"grad_checkpointing": False}
    peaks = []
    for stage in (1, 2, 3):
        sharded = row | {"parallel": f"ZeRO-{stage}"}
        assert hf_any.reason_not_traced(sharded) is None
        peaks.append(hf_any.trace_row(sharded).peak_bytes())
    assert peaks[0] > peaks[1] > peaks[2]
    alone = hf_any.trace_row(row | {"n_gpus": 1, "parallel": "none"})
    replicated = hf_any.trace_row(row | {"parallel": "DDP"})
    assert isinstance(alone, Tape)
    assert isinstance(replicated, Tape)
    weights = sum(birth.size for birth in alone.births if birth.role == "parameter")
    assert replicated.peak_bytes() - alone.peak_bytes() == pytest.approx(weights, rel=0.01)
    assert "tensor parallel" in hf_any.reason_not_traced(row | {"parallel": "tensor parallel"})
    offloaded = row | {"parallel": "ZeRO-3", "offload": "optimizer and params to CPU"}
    assert own_plan.deepspeed_engine(offloaded) == {
        "name": "deepspeed", "zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"
    }  # fmt: skip


def test_adapters_of_a_classifier_are_traced_beside_its_whole_head():
    sizes = {"hidden": 64, "layers": 1, "heads": 4, "kv_heads": 4, "intermediate": 128, "vocab": 256, "max_pos": 64}
    row = STATED | {"arch": sizes | {"arch_class": "DebertaV2ForSequenceClassification"}, "attn_impl": "eager"}
    row |= {"lora_target_modules": "query_proj", "loss_head": "2-way classification", "grad_checkpointing": False}
    tape = hf_any.trace_row(row)
    moments = [birth.shape for birth in tape.births if birth.phase == "optimizer" and birth.step == 1]
    assert (2, 64) in moments  # the head's weight
    assert (8, 64) in moments  # the matrix A of an adapter


def test_four_bits_under_autocast_compute_in_the_precision_that_the_row_says():
    sizes = {"hidden": 256, "layers": 2, "heads": 4, "kv_heads": 4, "intermediate": 1024, "vocab": 256}
    row = STATED | PACKED | {"arch": LLAMA | sizes, "attn_impl": "eager", "grad_checkpointing": False}
    row |= {
        "base_dtype": "float16",
        "quant": "bnb nf4, no double quant, compute fp16, no prepare_model_for_kbit_training",
    }
    tape = hf_any.trace_row(row | {"compute_dtype": "fp16 autocast"})
    made = {birth.dtype for birth in tape.births if birth.op.startswith(("mm.", "bmm.")) and birth.phase == "forward"}
    assert made == {"float16"}


def test_moments_in_8_bits_are_kept_so_and_an_optimizer_that_is_not_known_is_named():
    sizes = {"hidden": 512, "layers": 2, "heads": 4, "kv_heads": 4, "intermediate": 1024, "vocab": 256}
    row = STATED | FULL | {"arch": LLAMA | sizes, "micro_batch": 1}
    names = ("adamw_torch", "bnb.optim.AdamW8bit", "paged_adamw_32bit")
    tapes = [hf_any.trace_row(row | {"optimizer": name}) for name in names]
    whole, small, paged = (
        dict(tape.at_marks())[Phase.OPTIMIZER] - dict(tape.at_marks()[:1])[Phase.LOAD] for tape in tapes
    )
    # In bf16 the moments of torch are so too: two of 2 bytes a weight, where bitsandbytes keeps two of 1 and constants.
    assert small == pytest.approx(whole / 2, rel=0.05)
    # Paged ones lie in managed memory, but for those of norms and biases.
    assert paged < 0.02 * whole
    assert "GaLore" in hf_any.reason_not_traced(row | {"optimizer": "GaLoreAdamW"})


def test_a_row_under_either_version_of_fsdp_holds_a_share_of_the_masters_and_moments():
    sizes = {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 4, "intermediate": 1024, "vocab": 256}
    row = STATED | FULL | {"arch": LLAMA | sizes, "seq_len": 32, "metric_class": "active_peak", "n_gpus": 4}
    row |= {"base_dtype": "float32", "compute_dtype": "bf16 autocast", "grad_checkpointing": False}
    weights = 4 * (2 * 256 * 256 + 4 * (4 * 256 * 256 + 3 * 256 * 1024) + 9 * 256)
    for version in ("FSDP1", "FSDP2"):
        assert hf_any.reason_not_traced(row | {"parallel": version}) is None
        peak = replay(events_of(hf_any.trace_row(row | {"parallel": version}))).peak_active_bytes
        # Masters, gradients and two moments in fp32 of a quarter; torch's update takes one more, cuBLAS's spaces two.
        assert weights < peak - 2 * cuda.cublas_workspace(None) < 1.8 * weights
    assert "offload" in hf_any.reason_not_traced(row | {"parallel": "FSDP2", "offload": "optimizer to CPU"})


def test_a_compiled_model_keeps_less_than_one_that_is_not():
    sizes = {"hidden": 64, "layers": 1, "heads": 4, "kv_heads": 4, "intermediate": 256, "vocab": 256}
    row = STATED | FULL | {"arch": LLAMA | sizes, "micro_batch": 4, "seq_len": 1024, "grad_checkpointing": False}
    eager, compiled = (hf_any.trace_row(row | {"torch_compile": is_compiled}) for is_compiled in (False, True))
    assert isinstance(eager, Tape)
    assert isinstance(compiled, Tape)
    assert compiled.peak_bytes() < 0.8 * eager.peak_bytes()
    assert "checkpoints" in hf_any.reason_not_traced(row | {"torch_compile": True, "grad_checkpointing": True})
