"""The recorder's own rules: what autograd adds in place on a GPU, and tensors that hold other tensors."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from ftkit.observe.recorder import Recorder
from ftkit.step.observer import Phase


def gradients_of_a_sum(recorder: Recorder) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.empty(256, 256))
    with recorder:
        # Three uses of one weight: its gradient is a sum of three.
        with recorder.during(Phase.FORWARD):
            loss = sum((torch.ones(8, 256) @ weight).sum() for _ in range(3))
        assert isinstance(loss, torch.Tensor)
        with recorder.during(Phase.BACKWARD):
            loss.backward()
    assert weight.grad is not None
    return weight.grad


def test_a_sum_of_gradients_lives_where_its_first_summand_lived():
    with FakeTensorMode():
        recorder = Recorder()
        grad = gradients_of_a_sum(recorder)
        kept = recorder.live.number_of(grad)
    assert kept is not None
    made = [birth for birth in recorder.tape.births if birth.phase == Phase.BACKWARD and birth.size == 256 * 256 * 4]
    assert len(made) == 3  # one of each product, and none of a sum
    sizes = list(recorder.tape.live_bytes())
    assert max(sizes) < 3 * 256 * 256 * 4


@pytest.mark.parametrize("is_fake", [True, False])
def test_a_summand_that_a_hook_keeps_is_not_added_to_in_place(is_fake):
    """FSDP's hooks on the inputs of modules keep gradients until all of them are there."""
    kept = []
    with FakeTensorMode() if is_fake else nullcontext():
        start = torch.ones(64, requires_grad=True) * 2
        recorder = Recorder()
        branch = start * 3
        branch.register_hook(lambda grad: kept.append(grad))
        loss = (start + branch * 1.0).sum()  # the gradient of the sum goes to both branches as it is
        with recorder, recorder.during(Phase.BACKWARD):
            loss.backward()
    sums = [birth for birth in recorder.tape.births if birth.op == "add.Tensor"]
    assert len(sums) == 1


def test_real_and_fake_gradients_are_summed_alike():
    with FakeTensorMode():
        recorder = Recorder()
        gradients_of_a_sum(recorder)
    real = Recorder()
    gradients_of_a_sum(real)
    assert real.tape.peak_bytes() == recorder.tape.peak_bytes()


def test_the_tensors_inside_a_tensor_are_seen_and_not_the_one_around_them():
    recorder = Recorder()
    outer = TwoTensor(torch.ones(64), torch.ones(64))
    with recorder:
        doubled = outer * 2
    assert isinstance(doubled, TwoTensor)
    assert [birth.size for birth in recorder.tape.births] == [64 * 4, 64 * 4]
