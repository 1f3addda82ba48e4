"""The time that a run still takes, by its steps so far and by its plan."""

from types import SimpleNamespace

import pytest

from ftkit.records.job import JobPlan
from ftkit.training.state import Progress
from ftkit.training.time_left import seconds_left


def progress(step, taken, validations=()):
    made = Progress(started=0.0, step=step, step_seconds=list(taken))
    made.validations.update(dict.fromkeys(validations, 0.5))
    return made


def planned(steps, evaluations, saves, num_validations, end=0.0):
    job = JobPlan(
        start_seconds=5, steps_seconds=steps, evaluation_seconds=evaluations, save_seconds=saves,
        end_seconds=end, num_validations=num_validations, checkpoint_bytes=0, result_bytes=0,
    )  # fmt: skip
    return SimpleNamespace(job=job)


def test_without_a_plan_it_is_the_steps_that_are_left():
    assert seconds_left(progress(10, [2.0] * 10), 30, None) == pytest.approx(20 * 2.0)


def test_the_first_tenth_of_the_steps_says_nothing_of_the_later_ones():
    assert seconds_left(progress(20, [60.0] * 2 + [1.0] * 18), 30, None) == pytest.approx(10 * 1.0)


def test_what_is_around_the_steps_is_added_as_planned():
    # Of 12 s of scores and saves a third is behind.
    plan = planned(steps=30, evaluations=9, saves=3, num_validations=2)
    assert seconds_left(progress(10, [2.0] * 10, validations=[10]), 30, plan) == pytest.approx(40 + 12 * 2 / 3)


def test_at_the_last_step_what_comes_at_the_end_is_left():
    plan = planned(steps=30, evaluations=9, saves=3, num_validations=2)
    assert seconds_left(progress(30, [1.0] * 30, validations=[10, 20]), 30, plan) == pytest.approx(4)


def test_what_comes_after_the_last_step_is_left_until_then():
    # Of 12 s of scores and saves 6 come at the end, and of the others a third is behind.
    plan = planned(steps=30, evaluations=4, saves=8, num_validations=2, end=6.0)
    assert seconds_left(progress(10, [2.0] * 10, validations=[10]), 30, plan) == pytest.approx(40 + 6 * 2 / 3 + 6)
    assert seconds_left(progress(30, [1.0] * 30, validations=[10, 20, 30]), 30, plan) == pytest.approx(6)


def test_more_validations_than_were_planned_take_nothing_away():
    plan = planned(steps=30, evaluations=9, saves=3, num_validations=1)
    assert seconds_left(progress(30, [1.0] * 30, validations=[5, 10, 20, 30]), 30, plan) == 0
