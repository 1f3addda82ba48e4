"""The norm of Llama's kin, against transformers' own."""

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from ftkit.machine.process import ProcessContext
from ftkit.models.kernels import on_cpu
from ftkit.models.kernels.rms_norm import _LeanForward, lean_norms, rms_norm
from tests.helpers import build, save_tiny_model

WIDTH = 48


def make_norm(dtype: torch.dtype, *, trains: bool) -> LlamaRMSNorm:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(WIDTH).to(dtype)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm.requires_grad_(trains)


def run(norm: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor | None]:
    torch.manual_seed(1)
    x = (3 * torch.randn(*shape, WIDTH)).to(dtype).requires_grad_()
    grad = torch.randn(*shape, WIDTH).to(dtype)
    out = norm(x)
    out.backward(grad)
    return [out.detach(), x.grad, norm.weight.grad]


def test_gradients_are_those_of_finite_differences_in_fp64():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-6), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 7), (1, 1), (0, 4), (2, 3, 5)])
@pytest.mark.parametrize("trains", [True, False])
def test_values_and_gradients_are_those_of_transformers(trains, shape, dtype):
    theirs, ours = make_norm(dtype, trains=trains), make_norm(dtype, trains=trains)
    lean_norms(ours)
    # fp32: sums in another order. bf16: what transformers rounds on the way to a gradient is rounded at its end alone.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 4e-2}
    for one, other in zip(run(ours, shape, dtype), run(theirs, shape, dtype), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, **tolerance)


def test_the_forward_keeps_its_input_and_one_number_of_each_row():
    norm = make_norm(torch.bfloat16, trains=False)
    x = torch.randn(4, 6, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []
    lean_norms(norm)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        norm(x)
    own = {x.data_ptr(), norm.weight.data_ptr()}
    assert [one.shape for one in kept if one.data_ptr() not in own] == [(4, 6, 1)]


@pytest.mark.parametrize(("kind", "is_covered"), [(LlamaRMSNorm, True), (Qwen3RMSNorm, True), (GemmaRMSNorm, False)])
def test_norms_that_compute_something_else_are_left_alone(kind, is_covered):
    norm = kind(WIDTH)
    lean_norms(norm)
    assert isinstance(vars(norm).get("forward"), _LeanForward) == is_covered


def test_an_accelerator_and_a_mixture_of_types_have_the_norm_of_transformers():
    norm = make_norm(torch.float32, trains=True)
    lean_norms(norm)
    x = torch.randn(2, WIDTH, requires_grad=True)
    assert "RmsNorm" in norm(x).grad_fn.name()
    assert "RmsNorm" not in norm(x.bfloat16()).grad_fn.name()
    with on_cpu.judged_by(lambda _: False):
        assert "RmsNorm" not in norm(x).grad_fn.name()


def test_a_pass_without_gradients_computes_as_one_with_them():
    norm = make_norm(torch.float32, trains=True)
    lean_norms(norm)
    x = torch.randn(64, WIDTH)
    with torch.no_grad():
        without = norm(x)
    assert torch.equal(norm(x), without), "what a cache of frozen layers holds is what a step would compute"


def test_a_model_that_is_built_has_lean_norms_where_it_is_lean(tmp_path):
    model = save_tiny_model(tmp_path / "llama", "llama")
    for lean, forwards in (("true", {_LeanForward}), ("false", {type(None)})):
        _, engine = build([f"model.lean={lean}"], model, torch.float32, ProcessContext())
        norms = [one for one in engine.model.modules() if isinstance(one, LlamaRMSNorm)]
        assert norms
        assert {type(vars(norm).get("forward")) for norm in norms} == forwards
