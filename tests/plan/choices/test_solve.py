"""The largest that fits is what trying each value in turn finds."""

import pytest

from ftkit.config.files import load_config
from ftkit.errors import ConfigError, FtkitError
from ftkit.plan.choices.solve import LENGTH_STEP, RANKS, last_true, solve
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import Tapes, predict
from ftkit.records.schema import Verdict

SMALL = ("model.name=distilgpt2", "data.max_length=256", "method.name=lora", "batch.global_batch_size=4")
ASKED = (("1GiB", "max_length"), ("2GiB", "micro_batch_size"), ("1500MiB", "max_length"), ("3GiB", "rank"))
CASES = [
    (model, budget, axis)
    for model in ("distilgpt2", "smollm2-135m", "demo", "gpt2", "qwen2.5-0.5b")
    for budget, axis in ASKED
]


def config(*settings):
    return load_config(settings=[*SMALL, *settings])


def fits(run, target, tapes):
    try:
        prediction = predict(run, target, sequences=Sequences.unseen(run), tapes=tapes)
    except FtkitError:
        return False
    return prediction.verdict is Verdict.FITS


def largest_of_all(target, key, values, *settings):
    """Try each value in turn, up to the first that does not fit."""
    tapes, found = Tapes(), None
    for value in values:
        if not fits(config(*settings, f"{key}={value}"), target, tapes):
            return found
        found = value
    return found


@pytest.mark.parametrize("border", [-1, 0, 5, 12])
def test_the_last_of_what_holds_up_to_a_border_is_found(border):
    assert last_true(lambda place: place <= border, 13) == border


def test_the_largest_micro_batch_is_that_of_trying_each():
    target = find_target(memory_budget="800MiB")
    found = solve(config(), target, "micro_batch_size")
    assert found is not None
    size = found.changes["batch.micro_batch_size"]
    assert size == largest_of_all(target, "batch.micro_batch_size", range(1, 5))
    assert 1 < size < 4, "the case has a border"
    assert found.next_value == size + 1
    assert "needs" in str(found.next_reason)


def test_a_run_that_never_fits_has_no_solution():
    assert solve(config(), find_target(memory_budget="450MiB"), "max_length") is None


def test_a_method_without_a_rank_has_none_to_solve_for():
    with pytest.raises(ConfigError, match="method full has no rank to solve for; choose lora or qlora"):
        solve(load_config(settings=["model.name=distilgpt2", "method.name=full"]), find_target("t4"), "rank")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "budget", "axis"), CASES)
def test_a_solution_agrees_with_trying_each_value_in_turn(model, budget, axis):
    target, name = find_target(memory_budget=budget), f"model.name={model}"
    found = solve(config(name), target, axis)
    key, values, more = {
        "max_length": ("data.max_length", range(LENGTH_STEP, 32_769, LENGTH_STEP), ("batch.micro_batch_size=1",)),
        "micro_batch_size": ("batch.micro_batch_size", range(1, 5), ()),
        "rank": ("method.rank", RANKS, ()),
    }[axis]
    expected = largest_of_all(target, key, values, name, *more)
    assert (None if found is None else found.changes[key]) == expected
