"""What operators hold and which attention torch chooses, on a card and in the plan: `scripts/test -m gpu tests/gpu`.

Torch's allocator tells each request of an operator, and the plan says what they are. The plan is of torch 2.13; where
an older version differs by a rule of its own, the rule is named.
"""

from itertools import product

import pytest
import torch

from ftkit.machine.hardware import recognize_gpu
from ftkit.models.kernels.foreign import DispatchMode
from ftkit.observe.allocator import round_size
from ftkit.plan.tracing import cuda
from ftkit.plan.tracing.attention import call_of
from ftkit.plan.tracing.attention_choice import Kernel, choose

GPU = recognize_gpu(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPU is None, reason="needs an NVIDIA GPU of the table")]
KIB, MIB = 2**10, 2**20
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
OWN_WORKSPACE = VERSION < (2, 12)
"""torch 2.11 keeps a workspace of 1 MiB for cuBLASLt beside each of cuBLAS's (pull request 175879)."""
WIDE_CUDNN = VERSION < (2, 13)
"""torch 2.11 gives cuDNN heads of up to 256 on Hopper (pull request 185553)."""
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
aten = torch.ops.aten


def requested(action):
    """Return the sizes that the allocator was asked for while something ran."""
    torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python", clear_history=True)
    try:
        action()
        return [one["size"] for one in torch.cuda.memory._snapshot()["device_traces"][0] if one["action"] == "alloc"]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


class Planned(DispatchMode):
    """What the plan says of each operator that runs: the sizes of its results, and of what it holds beside them."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.sizes += cuda.scratch_size(func.__name__, args, GPU)
        return out


def held(action):
    """Return what an action's operators asked for beside its results, and what was planned; `action` returns these."""
    action()  # workspaces that stay are made
    results = []
    sizes = requested(lambda: results.append(action()))
    with Planned() as planned:
        action()
    made = results[0] if isinstance(results[0], tuple) else (results[0],)
    for one in made:
        sizes.remove(one.untyped_storage().nbytes())
    return sorted(sizes), sorted(planned.sizes)


def near(action):
    """Assert that what an action holds is planned, but for counters and seeds of a few bytes."""
    seen, planned = held(action)
    assert sum(seen) == pytest.approx(sum(planned), abs=KIB)


def peak_of(action):
    """Return the most bytes that an action takes at once beside its results."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = action()
    made = sum(round_size(one.untyped_storage().nbytes()) for one in results)
    return torch.cuda.max_memory_allocated() - before - made


def rand(*shape, dtype=FP32):
    return torch.randn(shape, device="cuda", dtype=dtype)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((4096, 512), [0]),
        ((4096, 2048), [0]),
        ((8, 512, 768), [0, 1]),
        ((16384, 4096), [0]),
        ((65536, 384), [0]),
        ((511, 1000), [0]),
        ((3000, 777), [0]),
        ((4096, 512), [-1]),
        ((2, 70000), [-1]),
        ((128, 64, 33), [0, 2]),
    ],
)
def test_a_sum_holds_what_is_planned_to_the_byte(shape, dims, dtype):
    x = rand(*shape, dtype=dtype)
    seen, planned = held(lambda: x.sum(dims))
    assert seen == planned


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_one_result_of_everything_holds_what_is_planned_to_the_byte(dtype):
    x = rand(4096, 768, dtype=dtype)
    for action in (x.sum, x.mean, x.amax, lambda: torch.linalg.vector_norm(x), lambda: (x != 0).all()):
        seen, planned = held(action)
        if planned:  # the mask of `all` is made on the way
            assert [one for one in seen if one != x.numel()] == planned


def heads_of(numbers, length, width, dtype):
    """Return query, key and value with the heads of one token beside each other, as models make them."""
    return [rand(2, length, number, width, dtype=dtype).transpose(1, 2) for number in numbers]


@pytest.mark.parametrize(("keys", "length", "width"), [(8, 520, 64), (2, 512, 64), (8, 384, 80), (8, 1024, 128)])
def test_flash_attention_holds_what_is_planned(keys, length, width):
    if GPU.capability < (8, 0):
        pytest.skip("flash attention needs Ampere")
    heads = heads_of((8, keys, keys), length, width, FP16)
    forward, backward = aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward
    near(lambda: forward(*heads, 0.0, True)[:2])
    out, lse, *_, seed, offset, _ = forward(*heads, 0.0, True)
    near(lambda: backward(out, *heads, out, lse, None, None, length, length, 0.0, True, seed, offset))


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize(("length", "width"), [(520, 64), (384, 80), (1024, 128), (520, 160)])
def test_memory_efficient_attention_holds_what_is_planned(length, width, dtype):
    heads = heads_of((8, 8, 8), length, width, dtype)
    name = "_scaled_dot_product_efficient_attention"
    forward, backward = getattr(aten, name), getattr(aten, f"{name}_backward")
    near(lambda: forward(*heads, None, True, 0.0, True)[:2])
    out, lse, seed, offset = forward(*heads, None, True, 0.0, True)
    wanted = [True, True, True, False]
    at_most = peak_of(lambda: backward(out, *heads, None, out, lse, seed, offset, 0.0, wanted, True)[:3])
    planned = sum(map(round_size, cuda.scratch_size(f"{name}_backward.default", (out, *heads), GPU)))
    assert planned - KIB <= at_most <= planned + 4 * MIB  # rests of up to 1 MiB stay with four blocks


def test_cudnns_backward_holds_what_is_planned():
    if GPU.capability[0] not in (9, 10):
        pytest.skip("cuDNN is not chosen on this card")
    forward, backward = aten._scaled_dot_product_cudnn_attention, aten._scaled_dot_product_cudnn_attention_backward
    for keys, length, width in ((8, 512, 64), (2, 512, 64), (8, 200, 64), (8, 384, 80)):
        heads = heads_of((8, keys, keys), length, width, BF16)
        out, lse, *sequences, seed, offset, _ = forward(*heads, None, True, 0.0, True)
        arguments = (out, *heads, out, lse, seed, offset, None, *sequences, 0.0, True)
        near(lambda given=arguments: backward(*given))


def test_softmax_embeddings_and_groups_hold_what_is_planned():
    scores = rand(16, 512, 512).softmax(-1)
    ids = torch.randint(0, 8192, (8, 512), device="cuda")
    types = torch.randint(0, 2, (8, 512), device="cuda")
    grad = rand(8, 512, 512, dtype=BF16)
    actions = [
        lambda: torch._safe_softmax(scores, -1),
        lambda: aten._softmax_backward_data(scores, scores, -1, FP32),
        lambda: aten.embedding_dense_backward(grad, ids, 8192, -1, False),
        lambda: aten.embedding_dense_backward(grad, types, 2, -1, False),
    ]
    for action in actions:
        seen, planned = held(action)
        # cub's sort of 4096 tokens has scratch of its own, which is gone before the sums are there.
        assert sum(planned) <= sum(seen) <= sum(planned) + 200 * KIB


def test_a_product_of_groups_holds_what_is_planned():
    if GPU.capability < (8, 0):
        pytest.skip("torch has no product of groups on this card")
    ends = torch.arange(1, 5, device="cuda", dtype=torch.int32) * 1024
    for dtype in (BF16, FP16, FP32):
        x, weight = rand(4096, 512, dtype=dtype), rand(4, 512, 1024, dtype=dtype)
        near(lambda given=(x, weight, ends): aten._grouped_mm(*given))


def test_a_product_with_a_bias_shares_the_workspace_of_every_other():
    x, weight, bias = rand(256, 256), rand(256, 256), rand(256)
    torch._C._cuda_clearCublasWorkspaces()
    sizes = requested(lambda: (x @ weight, torch.addmm(bias, x, weight)))
    kept = [one for one in sizes if one != x.nbytes]
    assert kept == [cuda.cublas_workspace(GPU)] + OWN_WORKSPACE * [MIB]


def calls():
    """Attentions of every kind that decides between the kernels."""
    masks = {"none": None, "rows": (2, 1, 1, 128), "two": (128, 128), "three": (2, 128, 128)}
    kinds = product(
        (FP32, BF16, FP16),
        ((8, 8, 8), (8, 2, 2), (8, 4, 2)),
        (64, 80, 100, 128, 192, 256),
        masks.values(),
        (0.0, 0.125),
    )
    for (dtype, heads, width, mask, dropout), is_causal, length in product(kinds, (False, True), (1, 128)):
        if mask is not None and (is_causal or length == 1):
            continue
        query, key, value = (
            torch.empty(2, number, rows, width, dtype=dtype, device="cuda", requires_grad=True)
            for number, rows in zip(heads, (length, 128, 128), strict=True)
        )
        bias = None if mask is None else torch.ones(mask, dtype=torch.bool, device="cuda")
        yield (query, key, value, bias, dropout, is_causal), {"enable_gqa": len(set(heads)) > 1}


def test_torch_chooses_the_attention_that_is_planned():
    names = {0: Kernel.MATH, 1: Kernel.FLASH, 2: Kernel.EFFICIENT, 3: Kernel.CUDNN}
    differ = []
    for arguments, groups in calls():
        query = arguments[0]
        if WIDE_CUDNN and query.shape[-1] > 128 and GPU.capability == (9, 0):
            continue  # there 2.11 gives cuDNN heads of up to 256
        chosen = names[torch._fused_sdp_choice(*arguments, **groups)]
        planned = choose(call_of(*arguments, **groups), GPU)
        if chosen is not planned:
            differ.append((chosen, planned, [getattr(one, "shape", one) for one in arguments], query.dtype))
    assert not differ, f"{len(differ)} differ, such as {differ[:5]}"
