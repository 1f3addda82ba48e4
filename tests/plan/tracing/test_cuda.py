"""What CUDA's kernels hold while they run, by torch's sources (the links are in ftkit/plan/tracing/cuda.py)."""

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, MixtralConfig

from ftkit.config.tree import RunConfig
from ftkit.data.batching import Shape
from ftkit.machine.hardware import find_gpu
from ftkit.observe.allocator import round_size
from ftkit.observe.recorder import Recorder
from ftkit.plan.tracing import cuda
from ftkit.plan.tracing.cuda import scratch_size
from ftkit.plan.tracing.trace import trace

H200 = find_gpu("h200")


def test_softmax_multiplies_its_result_by_the_gradient_first():
    out = torch.empty(3, 12, 512, 512, dtype=torch.bfloat16, device="meta")
    assert scratch_size("_softmax_backward_data.default", (out, out, -1, torch.bfloat16)) == (3 * 12 * 512 * 512 * 2,)
    grad = out.float()
    assert scratch_size("_softmax_backward_data.default", (grad, out, -1, torch.bfloat16)) == (3 * 12 * 512 * 512 * 4,)


EMBEDDING = "embedding_dense_backward.default"


@pytest.mark.parametrize(("rows", "segments"), [(32000, 4096), (1000, 1000)])
def test_a_table_of_embeddings_sums_its_gradient_in_parts_of_ten_rows_in_fp32(rows, segments):
    grad = torch.empty(4, 1024, 2048, dtype=torch.float16, device="meta")
    tokens = torch.empty(4, 1024, dtype=torch.int64, device="meta")
    lists = [8 * length for length in (4096, 4096, 4096, segments, segments, 409 + segments, 1, 1)]
    sums = (409 + segments) * 2048 * 4
    assert scratch_size(EMBEDDING, (grad, tokens, rows, -1, False)) == (*lists, sums)
    scattered = grad.transpose(0, 1).contiguous().transpose(0, 1)
    assert scratch_size(EMBEDDING, (scattered, tokens, rows, -1, False)) == (4096 * 2048 * 2, *lists, sums)


@pytest.mark.parametrize(
    ("tokens", "width", "rows", "dtype", "measured"),
    [
        (4096, 2048, 1000, torch.bfloat16, 11_670_016),
        (8192, 768, 50257, torch.float32, 28_082_688),
        (4096, 2048, 32000, torch.float16, 38_154_752 - 2**20),
        (3073, 2048, 32000, torch.float16, 28_891_136 - 2**20),
        (16384, 4096, 128256, torch.bfloat16, 296_499_200 - 425_984),
    ],
)
def test_so_it_was_measured_on_an_h200(tokens, width, rows, dtype, measured):
    """What max_memory_allocated showed beside the result, less the rest of a block, which is not split off.

    torch 2.11: a segment of 10 MiB or more has whole units of 2 MiB, and a rest of up to 1 MiB stays with its block.
    """
    grad = torch.empty(tokens, width, dtype=dtype, device="meta")
    ids = torch.empty(tokens, dtype=torch.int64, device="meta")
    assert sum(map(round_size, scratch_size(EMBEDDING, (grad, ids, rows, -1, False)))) == measured


def test_few_tokens_have_their_gradients_added_where_they_belong():
    grad = torch.empty(3, 1024, 64, device="meta")
    tokens = torch.empty(3, 1024, dtype=torch.int64, device="meta")
    assert scratch_size(EMBEDDING, (grad, tokens, 32000, -1, False)) == ()
    assert scratch_size(EMBEDDING, (grad, tokens, 32000, -1, True))  # scaled by how often a token comes: sorted


@pytest.mark.parametrize(("dtype", "in_fp32"), [(torch.float32, 0), (torch.bfloat16, 2 * 512 * 4)])
def test_a_table_of_few_rows_has_each_part_added_to_its_row_at_once(dtype, in_fp32):
    grad = torch.empty(8, 512, 512, dtype=dtype, device="meta")
    tokens = torch.empty(8, 512, dtype=torch.int64, device="meta")
    lists = [8 * length for length in (4096, 4096, 4096, 2, 2, 411, 1, 1, 411)]
    assert scratch_size(EMBEDDING, (grad, tokens, 2, -1, False), H200) == (*lists, *([in_fp32] if in_fp32 else []))


def test_a_safe_softmax_holds_which_elements_and_rows_are_minus_infinity():
    scores = torch.empty(64, 512, 512, dtype=torch.bfloat16, device="meta")
    assert scratch_size("_safe_softmax.default", (scores, -1)) == (16_777_216, 32_768, 2)


def test_a_product_with_a_4_bit_weight_unpacks_weight_and_scales_but_for_a_few_rows():
    def held(rows, *scales):
        x = torch.empty(1, rows, 512, dtype=torch.bfloat16, device="meta")
        return scratch_size("gemm_4bit.default", (x, None, (512, 512), None, 64, "nf4", None, *scales))

    assert held(4096, torch.empty(4096)) == (16_384, 16_384, 524_288)
    assert held(4096) == (524_288,)
    assert held(4) == ()


@pytest.mark.parametrize(
    ("gpu", "dtype", "measured"),
    [("h200", torch.bfloat16, (240, 67_584)), ("h200", torch.float16, ()), ("a100", torch.bfloat16, ())],
)
def test_a_product_of_groups_describes_them_to_hoppers_kernel_alone(gpu, dtype, measured):
    x, ends = torch.empty(4096, 512, dtype=dtype, device="meta"), torch.empty(4, dtype=torch.int32, device="meta")
    weight = torch.empty(4, 512, 1024, dtype=dtype, device="meta")
    assert scratch_size("_grouped_mm.default", (x, weight, ends), find_gpu(gpu)) == measured


def expert_products(gpu, dtype):
    """Return the operators that multiply the frozen experts of a mixture in a traced step."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    architecture = MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    config = RunConfig.model_validate({"model": {"name": "tiny"}, "method": {"name": "lora"}, "task": "causal-lm"})
    tape = trace(config, architecture, dtype, Shape(2, 64, 1), find_gpu(gpu))
    return {key[0].partition(".")[0] for costs in tape.costs.values() for key in costs if "grouped_mm" in key[0]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_experts_of_every_type_are_multiplied_by_torch_from_ampere_on_and_by_transformers_before(dtype):
    assert expert_products("a100", dtype) == {"_grouped_mm"}
    assert expert_products("t4", dtype) == {"grouped_mm_fallback", "grouped_mm_fallback_backward"}


def test_what_only_reads_and_writes_holds_nothing():
    assert scratch_size("mul.Tensor", (torch.ones(1), 2)) == ()


def attention_kernels(gpu, dtype, *, lean):
    """Return the operators of attention in a traced step of a model whose heads share keys."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    architecture = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    config = RunConfig.model_validate(
        {"model": {"name": "tiny", "lean": lean}, "method": {"name": "lora"}, "task": "causal-lm"}
    )
    tape = trace(config, architecture, dtype, Shape(2, 64, 1), find_gpu(gpu))
    names = {key[0].partition(".")[0] for costs in tape.costs.values() for key in costs}
    return {name for name in names if "dot_product" in name and "backward" not in name} | (names & {"_safe_softmax"})


@pytest.mark.parametrize(
    ("gpu", "dtype", "lean", "kernel"),
    [
        ("a100-40gb", torch.bfloat16, True, "_scaled_dot_product_flash_attention"),
        ("h100", torch.bfloat16, True, "_scaled_dot_product_cudnn_attention"),
        ("a100-40gb", torch.float32, True, "_scaled_dot_product_efficient_attention"),
        ("a100-40gb", torch.float32, False, "_safe_softmax"),
        ("t4", torch.float16, True, "_scaled_dot_product_efficient_attention"),
        ("t4", torch.float16, False, "_safe_softmax"),
    ],
)
def test_grouped_heads_are_repeated_where_torch_would_make_their_scores(gpu, dtype, lean, kernel):
    assert attention_kernels(gpu, dtype, lean=lean) == {kernel}


@pytest.mark.parametrize(("dtype", "copies"), [(torch.float16, 0), (torch.bfloat16, 1)])
def test_softmax_of_fp16_in_fp32_is_one_kernel(dtype, copies):
    x = torch.empty(4, 32, dtype=dtype, device="meta")
    with Recorder() as recorder, cuda.cuda_semantics():
        out = functional.softmax(x, dim=-1, dtype=torch.float32)
        x.log_softmax(-1, dtype=torch.float32)
    assert out.dtype == torch.float32
    names = [birth.op.partition(".")[0] for birth in recorder.tape.births]
    assert names.count("_to_copy") == 2 * copies
    assert names.count("_softmax") == names.count("_log_softmax") == 1


def test_plain_math_holds_scores_in_fp32_and_adds_the_mask_in_place():
    query = torch.empty(2, 4, 32, 16, dtype=torch.float16, device="meta", requires_grad=True)
    key = torch.empty(2, 2, 32, 16, dtype=torch.float16, device="meta", requires_grad=True)
    with Recorder(cuda.storage_size, cuda.scratch_size) as recorder, cuda.cuda_semantics(find_gpu("t4")):
        out = functional.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
    scores = 2 * 4 * 32 * 32 * 4
    large = [birth.op.partition(".")[0] for birth in recorder.tape.births if birth.size >= scores]
    assert out.dtype == torch.float16
    assert large == ["bmm", "_safe_softmax"]
