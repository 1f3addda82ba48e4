"""What is remembered is what torch would have made."""

import pytest
import torch

from ftkit.plan.tracing import foreign
from ftkit.plan.tracing import layout_cache as remembered

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
    first, second = (remembered.call_on_meta(operator, arguments, named) for _ in range(2))

    for tensor in (first, second):
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (fresh.shape, fresh.stride(), fresh.dtype)
        assert tensor.untyped_storage().nbytes() == fresh.untyped_storage().nbytes()
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata


def test_arguments_that_are_equal_but_not_the_same_are_told_apart():
    tensor = torch.empty(4, dtype=torch.int64, device="meta")

    made = [remembered.call_on_meta(aten.mul.Scalar, (tensor, factor), {}) for factor in (2, 2.0, 2)]

    assert [one.dtype for one in made] == [torch.int64, torch.float32, torch.int64]


def test_a_view_is_a_view_every_time():
    tensor = half(4, 8)

    for _ in range(2):
        view = remembered.call_on_meta(aten._unsafe_view.default, (tensor, [32]), {})
        assert view.untyped_storage()._cdata == tensor.untyped_storage()._cdata


def test_what_is_written_into_is_returned_and_what_cannot_be_is_refused():
    tensor = half(4, 8)

    for _ in range(2):
        assert remembered.call_on_meta(aten.add_.Tensor, (tensor, half(8)), {}) is tensor
        with pytest.raises(RuntimeError):
            remembered.call_on_meta(aten.add_.Tensor, (tensor, half(3, 4, 8)), {})


def test_tensors_with_values_are_computed():
    tensor = torch.arange(4.0)

    for _ in range(2):
        assert remembered.call_on_meta(aten.mul.Tensor, (tensor, tensor), {}).tolist() == [0, 1, 4, 9]
    remembered.call_on_meta(aten.add_.Tensor, (tensor, tensor), {})
    assert tensor.tolist() == [0, 2, 4, 6]


def test_fake_tensors_are_made_as_torch_makes_them_new_written_and_seen_another_way():
    with foreign.fake_mode() as mode:
        tensor, call = torch.empty(4, 8), remembered.call_on_fake(mode)
        for _ in range(2):
            made, fresh = call(aten.sum.dim_IntList, (tensor, [1], True), {}), tensor.sum(1, keepdim=True)
            assert (made.shape, made.stride(), made.device) == (fresh.shape, fresh.stride(), torch.device("cpu"))
            assert call(aten.add_.Tensor, (tensor, made), {}) is tensor
            view = call(aten.transpose.int, (tensor, 0, 1), {})
            assert (view.shape, view.stride()) == ((8, 4), (1, 8))
            assert view.untyped_storage()._cdata == tensor.untyped_storage()._cdata


def test_a_fake_tensor_whose_value_is_known_keeps_it():
    with foreign.fake_mode() as mode:
        known, call = torch.tensor(3), remembered.call_on_fake(mode)
        for _ in range(2):
            assert call(aten.add.Tensor, (known, 1), {}).item() == 4
            assert call(aten.view.default, (known, [1]), {}).item() == 3


def test_what_changes_its_shape_in_place_does_so_every_time():
    with foreign.fake_mode() as mode:
        for _ in range(2):
            tensor = torch.empty(4, 8)
            assert remembered.call_on_fake(mode)(aten.t_.default, (tensor,), {}).shape == (8, 4)
