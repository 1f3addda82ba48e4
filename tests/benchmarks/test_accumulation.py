"""Two gradients side by side."""

import pytest
import torch

from benchmarks.accumulation import beside


def test_length_and_angle_of_a_gradient_are_those_to_the_other():
    reference = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert beside({"a": torch.tensor([24.0]), "b": torch.tensor([32.0])}, reference) == pytest.approx((8.0, 0.0))
    assert beside({"a": torch.tensor([-4.0]), "b": torch.tensor([3.0])}, reference) == pytest.approx((1.0, 1.0))
