"""The recorder's own rules: what autograd adds in place on a GPU, and tensors that hold other tensors."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from ftkit.plan.tape import BACKWARD, FORWARD, Recorder


def gradients_of_a_sum(recorder: Recorder) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.empty(256, 256))
    with recorder:
        recorder.phase = FORWARD
        # Three uses of one weight: its gradient is a sum of three.
        loss = sum((torch.ones(8, 256) @ weight).sum() for _ in range(3))
        recorder.phase = BACKWARD
        assert isinstance(loss, torch.Tensor)
        loss.backward()
    assert weight.grad is not None
    return weight.grad


def test_a_sum_of_gradients_lives_where_its_first_summand_lived():
    with FakeTensorMode():
        recorder = Recorder()
        grad = gradients_of_a_sum(recorder)
        kept = recorder.number_of(grad)
    assert kept is not None
    made = [birth for birth in recorder.tape.births if birth.phase == BACKWARD and birth.size == 256 * 256 * 4]
    assert len(made) == 3  # one of each product, and none of a sum
    sizes = list(recorder.tape.live_bytes())
    assert max(sizes) < 3 * 256 * 256 * 4


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
