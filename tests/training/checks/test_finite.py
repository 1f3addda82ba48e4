"""Numbers that are not finite are seen one step late and never kept."""

import math

import pytest
import torch

from benchmarks.live_bytes import LiveBytes
from ftkit.errors import DivergedError
from ftkit.step.step import StepResult
from ftkit.training.checks.finite import MOST_SKIPPED, FiniteSteps, check_loss, check_tensors


def result(loss=1.0, norm=1.0):
    return StepResult(torch.tensor(loss), torch.tensor(norm))


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (result(loss=math.nan), "the loss at step 2 is nan"),
        (result(loss=-math.inf), "the loss at step 2 is -inf"),
        (result(norm=math.inf), "the gradient norm at step 2 is inf"),
    ],
)
def test_a_bad_step_is_named_when_the_next_one_is_queued_or_something_is_to_be_kept(bad, sentence):
    for look in (lambda steps: steps.add(3, result()), FiniteSteps.check):
        steps = FiniteSteps(may_skip=False)
        steps.add(1, result())
        steps.add(2, bad)  # the device may still be at work on it, so nobody waits for it yet
        with pytest.raises(DivergedError, match=sentence):
            look(steps)


def test_a_loss_that_is_bad_before_any_update_is_not_the_learning_rates():
    for step in (1, 2):
        steps = FiniteSteps(may_skip=False)
        steps.add(step, result(loss=math.nan))
        with pytest.raises(DivergedError) as caught:
            steps.check()
        assert caught.value.is_before_updates == (step == 1)


def test_a_loss_scale_may_skip_steps_until_none_of_it_is_left():
    steps = FiniteSteps(may_skip=True)
    for step in range(3 * MOST_SKIPPED):
        steps.add(step, result(norm=math.inf if step % MOST_SKIPPED else 1.0))
    steps.add(0, result())
    for step in range(MOST_SKIPPED + 1):
        steps.add(step, result(norm=math.nan))
    with pytest.raises(
        DivergedError, match=rf"the gradient norm at step {MOST_SKIPPED} is nan, as at the {MOST_SKIPPED} before"
    ):
        steps.check()


def test_a_loss_that_is_not_finite_is_a_fault_in_fp16_too():
    steps = FiniteSteps(may_skip=True)
    steps.add(1, result(loss=math.nan, norm=math.nan))
    with pytest.raises(DivergedError, match="the loss at step 1"):
        steps.check()


def test_tensors_and_scores_that_are_not_finite_are_named():
    check_tensors({"a": torch.ones(2), "packed": torch.zeros(2, dtype=torch.uint8)}, "weight", 7)
    with pytest.raises(DivergedError, match="the moment b is not finite after step 7"):
        check_tensors({"a": torch.ones(2), "b": torch.tensor([1.0, math.inf])}, "moment", 7)
    long = torch.ones(2**21)
    long[-1] = math.nan
    with LiveBytes() as counter, pytest.raises(DivergedError, match="the weight long"):
        check_tensors({"long": long}, "weight", 7)
    assert counter.peak < 2 * long.nbytes, "a part is looked at after the other"
    check_loss(0.5, "validation", 7)
    with pytest.raises(DivergedError, match="the validation loss after step 7 is nan"):
        check_loss(math.nan, "validation", 7)
