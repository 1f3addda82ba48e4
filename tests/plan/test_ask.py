"""The planner's public function, and the command beside it, take the cut that a training takes."""

from click.testing import CliRunner

import ftkit
from ftkit.cli import main
from ftkit.config.files import load_config
from ftkit.plan.choices.solve import solve
from ftkit.plan.inputs.target import find_target

BUDGET = "300MB"
"""Between the 234 MB that the usual model needs on a T4 with 1 text of 64 tokens, and the 387 MB with 32 of them."""


def planned(**batch):
    return ftkit.plan({"data": {"max_length": 64}, "batch": batch}, "t4", memory_budget=BUDGET)


def test_a_plan_makes_the_usual_cut_smaller_where_it_does_not_fit_as_a_training_does():
    smaller, named = planned(), planned(micro_batch_tokens=4096)
    assert smaller.fits
    assert smaller.micro_batch_size < named.micro_batch_size
    assert not named.fits

    done = CliRunner().invoke(main, ["plan", "--gpu", "t4", "--memory-budget", BUDGET, "--max-length", "64"])
    assert done.exit_code == 0, done.output
    tokens = 64 * smaller.micro_batch_size
    assert f"note: micro-batches of {tokens:,} tokens, since the usual 4,096 do not fit" in done.stderr


def test_the_largest_rank_is_the_last_with_which_a_plan_fits():
    config = load_config(settings=["data.max_length=64", "method.name=lora"])
    found = solve(config, find_target("t4", memory_budget=BUDGET), "rank")
    assert found is not None
    assert found.settled.lines, "the usual cut was made smaller"
    for rank, fits in ((found.changes["method.rank"], True), (found.next_value, False)):
        run = {"data": {"max_length": 64}, "method": {"name": "lora", "rank": rank}}
        assert ftkit.plan(run, "t4", memory_budget=BUDGET).fits == fits
