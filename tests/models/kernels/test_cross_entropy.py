"""A head and its cross-entropy chunk by chunk, against torch's own functions of whole logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ftkit.models import bnb
from ftkit.models.kernels import cross_entropy as kernel
from ftkit.models.kernels import on_cpu
from ftkit.models.kernels.cross_entropy import Tail, cross_entropy
from ftkit.models.kernels.foreign import DispatchMode
from ftkit.observe.operators import UNALIGNED, op_key

WIDTH, VOCABULARY = 64, 96
TAILS = [Tail(), Tail(scale=0.25), Tail(cap=5.0), Tail(2.0, 5.0)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Chunks of a few rows at these sizes, scored 3 at a time: several of both, and the last ones are smaller."""
    monkeypatch.setattr(kernel, "_FEWEST_ROWS", 4)
    monkeypatch.setattr(kernel, "_FEWEST_BYTES_OF_TRAINED", 16)
    monkeypatch.setattr(kernel, "_SCORED_AT_ONCE", 3 * VOCABULARY)


def make_head(kind: str, dtype: torch.dtype, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    head = Conv1D(VOCABULARY, WIDTH) if kind == "Conv1D" else nn.Linear(WIDTH, VOCABULARY, bias=bias)
    head = head.to(dtype)
    if kind == "4-bit":
        holder = nn.ModuleDict({"head": head.requires_grad_(False)})
        bnb.quantize(holder, bnb.Packing("nf4", True, dtype), keep=())
        return holder["head"]
    nn.init.normal_(head.weight, std=0.3)
    return head


def make_rows(num_rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    rows = torch.randn(num_rows, WIDTH).to(dtype).requires_grad_()
    return rows, torch.randint(VOCABULARY, (num_rows,))


def plain(rows, head, labels, tail):
    logits = head(rows).float() if rows.dtype != torch.float64 else head(rows)
    logits = logits * tail.scale
    logits = logits if tail.cap is None else tail.cap * torch.tanh(logits / tail.cap)
    return functional.cross_entropy(logits, labels, reduction="sum")


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_gradients_are_those_of_finite_differences_in_fp64(kind, tail):
    head = make_head(kind, torch.float64)
    rows, labels = make_rows(7, torch.float64)

    def run(rows, weight, bias):
        head.weight, head.bias = nn.Parameter(weight), nn.Parameter(bias)
        return kernel._CrossEntropy.apply(rows, weight, bias, head, labels, tail, True)

    inputs = (rows, head.weight.detach().requires_grad_(), head.bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def rows_seen(monkeypatch, name: str) -> list[int]:
    """Have a function of the kernel note how many rows of logits each of its calls is given."""
    seen: list[int] = []
    score = getattr(kernel, name)

    def noted(logits, *rest):
        seen.append(len(logits))
        return score(logits, *rest)

    monkeypatch.setattr(kernel, name, noted)
    return seen


@pytest.mark.parametrize(("trains", "wanted"), [(True, [8, 3]), (False, [7, 4])])
def test_a_head_that_trains_has_larger_chunks_so_that_its_gradient_is_added_up_less_often(trains, wanted, monkeypatch):
    monkeypatch.setattr(kernel, "_FEWEST_BYTES_OF_TRAINED", 8 * 4)
    seen = rows_seen(monkeypatch, "_score")
    head, (rows, labels) = make_head("Linear", torch.float32), make_rows(11, torch.float32)
    cross_entropy(rows, head.requires_grad_(trains), labels)
    assert seen == wanted


@pytest.mark.parametrize(("is_on_cpu", "wanted"), [(True, 16), (False, 8)])
def test_where_whole_chunks_are_copied_to_fp32_they_are_as_short_as_in_fp32(is_on_cpu, wanted, monkeypatch):
    monkeypatch.setattr(kernel, "_FEWEST_BYTES_OF_TRAINED", 8 * 4)
    rows, _ = make_rows(11, torch.bfloat16)
    with on_cpu.judged_by(lambda _: is_on_cpu):
        assert kernel.num_chunk_rows(rows, VOCABULARY, trains=True) == wanted


@pytest.mark.parametrize(("is_on_cpu", "wanted"), [(True, [3, 3, 1, 3, 1]), (False, [7, 4])])
def test_a_cpu_scores_as_many_rows_at_once_as_its_cache_holds(is_on_cpu, wanted, monkeypatch):
    seen = rows_seen(monkeypatch, "_score_rows")
    head, (rows, labels) = make_head("Linear", torch.float32), make_rows(11, torch.float32)
    with on_cpu.judged_by(lambda _: is_on_cpu):
        loss = cross_entropy(rows, head, labels)
    assert seen == wanted
    torch.testing.assert_close(loss, plain(rows, head, labels, Tail()))


@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "4-bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 4, 11])
@pytest.mark.parametrize("tail", TAILS)
def test_values_and_gradients_equal_those_of_whole_logits(kind, dtype, num_rows, tail):
    outcomes = []
    for function in (cross_entropy, plain):
        head, (rows, labels) = make_head(kind, dtype), make_rows(num_rows, dtype)
        loss = function(rows, head, labels, tail)
        (loss / 3).backward()
        outcomes.append([loss, rows.grad, head.weight.grad, head.bias.grad])
    # fp32: sums in another order. bf16 has 8 bits, and a product of chunks is rounded once for each.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for ours, theirs in zip(*outcomes, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, **tolerance)


def test_no_rows_have_no_loss_and_gradients_of_zeros():
    head, (rows, labels) = make_head("Linear", torch.float32), make_rows(0, torch.float32)
    loss = cross_entropy(rows, head, labels)
    loss.backward()
    assert loss == 0
    assert rows.grad.shape == (0, WIDTH)
    assert not head.weight.grad.any()


def test_a_frozen_head_without_a_bias_gets_no_gradient():
    head, (rows, labels) = make_head("Linear", torch.float32, bias=False), make_rows(5, torch.float32)
    cross_entropy(rows, head.requires_grad_(False), labels).backward()
    assert rows.grad is not None
    assert head.weight.grad is None


def test_an_evaluation_makes_no_gradients():
    head, (rows, labels) = make_head("Linear", torch.float32), make_rows(5, torch.float32)
    with torch.no_grad():
        loss = cross_entropy(rows, head, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(rows, head, labels, Tail()))


def test_large_logits_neither_overflow_nor_lose_the_loss():
    head, (rows, labels) = make_head("Linear", torch.float32), make_rows(5, torch.float32)
    scale = Tail(scale=1e4)
    torch.testing.assert_close(cross_entropy(rows, head, labels, scale), plain(rows, head, labels, scale))


def test_a_head_in_4_bits_is_unpacked_once_for_all_its_chunks(monkeypatch):
    head, (rows, labels) = make_head("4-bit", torch.float32, bias=False), make_rows(9, torch.float32)
    unpacked, matrix_of = list[nn.Module](), bnb.matrix_of

    def noted(one: nn.Module) -> torch.Tensor:
        unpacked.append(one)
        return matrix_of(one)

    monkeypatch.setattr(bnb, "matrix_of", noted)
    cross_entropy(rows, head, labels).backward()
    assert unpacked == [head]


@pytest.mark.parametrize("vocabulary", [96, 97, 103])
def test_on_a_gpu_the_logits_that_its_kernels_are_slow_for_are_multiplied_by_themselves(vocabulary):
    torch.manual_seed(0)
    head, labels = nn.Linear(WIDTH, vocabulary, bias=False).bfloat16(), torch.arange(9)
    rows = torch.randn(9, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    whole = functional.cross_entropy(head.float()(rows.float()), labels, reduction="sum")
    expected = torch.autograd.grad(whole, (rows, head.weight))
    head.bfloat16()
    with on_cpu.judged_by(lambda _: False), Products() as products:
        loss = cross_entropy(rows, head, labels)
        found = torch.autograd.grad(loss, (rows, head.weight))
    torch.testing.assert_close(loss, whole, rtol=1e-2, atol=0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.05, atol=0.02)
    assert max(products.odd, default=0) < 8


class Products(DispatchMode):
    """Notes of each product that a GPU is slow for the largest size that is no multiple of 8."""

    def __init__(self):
        super().__init__()
        self.odd = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if op_key(func.__name__, args, out)[0].endswith(UNALIGNED):
            sizes = [size for one in args if isinstance(one, torch.Tensor) for size in one.shape]
            self.odd.append(max(size for size in sizes if size % 8))
        return out
