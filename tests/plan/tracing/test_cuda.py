"""What CUDA's kernels hold while they run, by torch's sources (the links are in ftkit/plan/tracing/cuda.py)."""

import pytest
import torch

from ftkit.plan.tracing.cuda import scratch_size

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


def test_what_only_reads_and_writes_holds_nothing():
    assert scratch_size("mul.Tensor", (torch.ones(1), 2)) == ()
