"""What CUDA's kernels hold while they run, by torch's sources (the links are in ftkit/plan/tracing/cuda.py)."""

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig

from ftkit.config.tree import RunConfig
from ftkit.data.batching import Shape
from ftkit.machine.hardware import find_gpu
from ftkit.observe.allocator import round_size
from ftkit.observe.recorder import Recorder
from ftkit.plan.tracing import cuda
from ftkit.plan.tracing.cuda import scratch_size
from ftkit.plan.tracing.trace import trace

FLASH = "_scaled_dot_product_flash_attention_backward.default"
EFFICIENT = "_scaled_dot_product_efficient_attention_backward.default"


def heads(batch, number, length, width, dtype=torch.bfloat16, *, together=True):
    """Return (batch, heads, length, width), with the heads of one token beside each other or not."""
    shape = (batch, length, number, width) if together else (batch, number, length, width)
    made = torch.empty(shape, dtype=dtype, device="meta")
    return made.transpose(1, 2) if together else made


def test_softmax_multiplies_its_result_by_the_gradient_first():
    out = torch.empty(3, 12, 512, 512, dtype=torch.bfloat16, device="meta")
    assert scratch_size("_softmax_backward_data.default", (out, out, -1, torch.bfloat16)) == (3 * 12 * 512 * 512 * 2,)
    grad = out.float()
    assert scratch_size("_softmax_backward_data.default", (grad, out, -1, torch.bfloat16)) == (3 * 12 * 512 * 512 * 4,)


@pytest.mark.parametrize(
    ("width", "rounded", "length", "rows"), [(128, 128, 1304, 1408), (80, 96, 128, 128), (160, 192, 1, 128)]
)
def test_flash_sums_the_gradient_of_the_query_in_fp32(width, rounded, length, rows):
    query = heads(2, 32, length, width)
    sums = 2 * 32 * rows * 4
    assert scratch_size(FLASH, (query, query, query)) == (sums, sums * rounded)


def test_flash_makes_gradients_of_grouped_keys_for_each_head_and_copies_a_scattered_gradient():
    query, key = heads(2, 32, 4096, 128), heads(2, 8, 4096, 128)
    sums, whole = 2 * 32 * 4096 * 4, 2 * 32 * 4096 * 128 * 2
    assert scratch_size(FLASH, (query, query, key)) == (sums, sums * 128, whole, whole)
    scattered = heads(2, 32, 4096, 128, together=False)
    assert scratch_size(FLASH, (scattered, query, query)) == (sums, sums * 128, whole)


@pytest.mark.parametrize(
    ("dtype", "width", "elements"),
    [
        (torch.bfloat16, 64, 576 * 64),
        (torch.bfloat16, 80, 576 * 128),
        (torch.bfloat16, 160, 576 * 192 + 2 * 3 * 64 * 192),  # 200 // 64 heads: in three splits
        (torch.float32, 80, 576 * 128),
    ],
)
def test_the_memory_efficient_kernel_sums_in_whole_tiles(dtype, width, elements):
    query = heads(2, 32, 520, width, dtype)
    sums = 2 * 32 * 520 * 4
    workspace = 2 * 32 * elements * 4
    if dtype == torch.float32:
        workspace = max(workspace, sums * width)  # or the product that is summed
    assert scratch_size(EFFICIENT, (query, query, query, query)) == (sums, workspace)


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
    assert large == ["bmm", "_safe_softmax", "_safe_softmax"]  # its result, and what it puts right
