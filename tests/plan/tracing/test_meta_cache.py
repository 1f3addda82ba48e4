"""What is remembered is what torch would have made."""

import pytest
import torch

from ftkit.plan.tracing import meta_cache as remembered

aten = torch.ops.aten


def half(*shape):
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("operator", "arguments", "named"),
    [
        (aten.mul.Tensor, (half(4, 1), half(1, 8)), {}),
        (aten.add.Tensor, (half(4, 8).t(), half(8, 4).float()), {"alpha": 2}),
        (aten._to_copy.default, (half(4, 8),), {"dtype": torch.float32}),
        (aten.cat.default, ([half(4, 8), half(2, 8)],), {}),
        (aten.mean.dim, (half(4, 8), [-1], True), {}),
    ],
    ids=lambda value: str(value).rpartition("aten::")[2] if callable(value) else "",
)
def test_the_second_call_makes_what_the_first_one_made(operator, arguments, named):
    fresh = operator(*arguments, **named)
    first, second = (remembered.call(operator, arguments, named) for _ in range(2))

    for tensor in (first, second):
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (fresh.shape, fresh.stride(), fresh.dtype)
        assert tensor.untyped_storage().nbytes() == fresh.untyped_storage().nbytes()
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata


def test_arguments_that_are_equal_but_not_the_same_are_told_apart():
    tensor = torch.empty(4, dtype=torch.int64, device="meta")

    made = [remembered.call(aten.mul.Scalar, (tensor, factor), {}) for factor in (2, 2.0, 2)]

    assert [one.dtype for one in made] == [torch.int64, torch.float32, torch.int64]


def test_a_view_is_a_view_every_time():
    tensor = half(4, 8)

    for _ in range(2):
        view = remembered.call(aten._unsafe_view.default, (tensor, [32]), {})
        assert view.untyped_storage()._cdata == tensor.untyped_storage()._cdata


def test_tensors_with_values_are_computed():
    tensor = torch.arange(4.0)

    for _ in range(2):
        assert remembered.call(aten.mul.Tensor, (tensor, tensor), {}).tolist() == [0, 1, 4, 9]
