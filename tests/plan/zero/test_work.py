"""What DeepSpeed computes beside the plain engine is on the tape of a rank, and in the seconds of a plan on a CPU."""

import math
from collections import Counter

import pytest

from ftkit.engine.resolve import resolve
from ftkit.observe.tape import Tape
from ftkit.plan.inputs.target import Target, find_target
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.seconds.hooks import HOOKS
from ftkit.plan.seconds.messages import Collective
from ftkit.plan.zero.share import share_out
from ftkit.plan.zero.work import _PER_BACKWARD, _PER_FORWARD, _PER_GATHER
from ftkit.step.observer import Phase
from tests.plan.zero.cases import Case, moved_bytes


def at(ranks):
    return Target("cpu", "cpu", None, 2**34, ranks, launcher="deepspeed")


def traced(case: Case, target: Target, tapes: Tapes) -> Tape:
    """Return the tape of the plain engine that a plan of a case rests on."""
    predict(case.config, target, case.architecture, tapes=tapes)
    return list(tapes.known.values())[-1][0]


def hooks(tape: Tape, phase: Phase) -> int:
    return sum(
        times
        for (at_phase, step, _), counter in tape.costs.items()
        if at_phase is phase and step == 2
        for (name, *_), times in counter.items()
        if name == HOOKS
    )


def test_a_step_takes_longer_under_deepspeed_and_longest_where_weights_are_partitioned():
    plain, second, third = (Case("llama", stage, "none", "lora", 0.0, precision="fp32") for stage in (0, 2, 3))
    seconds = [predict(one.config, at(1), one.architecture).step_seconds or 0.0 for one in (plain, second, third)]
    assert seconds == sorted(set(seconds))


def test_each_module_is_fetched_in_its_forward_and_in_its_backward_and_once_more_where_it_is_computed_again():
    tapes, kept, again = Tapes(), *(Case("llama", 3, "none", "full", level, precision="fp32") for level in (0.0, 1.0))
    found = {}
    for one in (kept, again):
        tape = traced(one, at(1), tapes)
        share = share_out(tape, resolve(one.config, at(1).devices)).tape
        found[one] = hooks(share, Phase.FORWARD), hooks(share, Phase.BACKWARD)
    (forward, backward), (forward_too, backward_again) = found.values()
    assert forward == forward_too
    assert forward % _PER_FORWARD == 0
    assert backward >= forward / _PER_FORWARD * _PER_BACKWARD * 0.8  # some modules have no input that needs a gradient
    assert backward_again > backward + 0.8 * forward


def test_weights_that_come_from_other_ranks_cost_python_for_each_message():
    one, tapes = Case("llama", 3, "none", "full", 0.0, precision="fp32"), Tapes()
    tape = traced(one, at(1), tapes)
    alone, first = (share_out(tape, resolve(one.config, at(ranks).devices)) for ranks in (1, 2))
    gathers = sum(
        times for message, times in first.messages[Phase.FORWARD].items() if message.collective is Collective.GATHER
    )
    assert gathers > 10
    assert hooks(first.tape, Phase.FORWARD) - hooks(alone.tape, Phase.FORWARD) == gathers * _PER_GATHER


def test_a_rank_of_several_updates_its_part_and_leaves_the_plain_engines_tape_as_it_was():
    one, tapes = Case("llama", 2, "none", "full", 0.0, precision="fp32"), Tapes()
    tape = traced(one, at(1), tapes)
    before = {place: Counter(counter) for place, counter in tape.costs.items()}

    def update_bytes(ranks):
        share = share_out(tape, resolve(one.config, at(ranks).devices)).tape
        costs = {place: counter for place, counter in share.costs.items() if place[0] is Phase.OPTIMIZER}
        return moved_bytes(Tape(costs=costs))

    assert update_bytes(4) == pytest.approx(update_bytes(1) / 4, rel=0.01)  # step counters are not shared out
    assert tape.costs == before


def test_gradients_are_averaged_in_their_own_type_and_copied_one_by_one():
    one, tapes = Case("llama", 2, "none", "full", 0.0, precision="bf16"), Tapes()
    tape = traced(one, at(1), tapes)
    counter = share_out(tape, resolve(one.config, at(1).devices)).tape.costs[Phase.BACKWARD, 2, None]
    num_gradients = sum(birth.role == "trainable" for birth in tape.births)
    num_backwards = sum(phase is Phase.BACKWARD for _, phase in tape.marks) // 2  # of two steps
    averaged = [times for (name, _, _, dtype), times in counter.items() if (name, dtype) == ("div_", "bfloat16")]
    assert averaged == [num_backwards]
    assert sum(times for (name, *_), times in counter.items() if name == "copy_") >= 2 * num_gradients * num_backwards


def test_an_update_is_of_one_flat_tensor_and_the_norm_is_taken_tensor_by_tensor():
    one, tapes = Case("llama", 2, "none", "full", 0.0, precision="fp32"), Tapes()
    tape = traced(one, at(1), tapes)
    counter = share_out(tape, resolve(one.config, at(1).devices)).tape.costs[Phase.OPTIMIZER, 2, None]
    trained = Counter(math.prod(birth.shape) for birth in tape.births if birth.role == "trainable")
    assert trained.total() > 10
    assert {times for (name, *_), times in counter.items() if name.startswith("_fused")} == {1}
    norms = {
        (dtype, moved): times
        for (name, _, moved, dtype), times in counter.items()
        if name.startswith("linalg_vector_norm")
    }
    assert norms == {("float64", 8 * size): times for size, times in trained.items()}


def test_a_gpu_hides_it():
    case = Case("llama", 3, "none", "lora", 0.0)
    target, tapes = find_target("a100-80gb", num_devices=2), Tapes()
    tape = traced(case, target, tapes)
    assert share_out(tape, resolve(case.config, target.devices)).tape.costs == tape.costs
