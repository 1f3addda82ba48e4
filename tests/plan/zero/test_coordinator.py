"""ZeRO-3's coordinator on a model of three weights: the example of its docstring, and its limits."""

import pytest

from ftkit.observe.tape import Tape
from ftkit.plan.zero.coordinator import Coordinator, Limits
from ftkit.plan.zero.gather import Gatherer, Parameter
from ftkit.plan.zero.heap import Heap
from ftkit.plan.zero.module_events import Moment, Visit
from ftkit.step.observer import Phase

SIZE, ITEMSIZE, NAMES = 100, 2, ("a", "b", "c")


class Passes:
    """Passes over three modules that have a weight each, on two ranks."""

    def __init__(self, limits, **weights):
        self.heap = Heap(Tape())
        parameters = {
            (None, name): Parameter(weights.get(name, SIZE), ITEMSIZE, order, is_trainable=False, is_matrix=True)
            for order, name in enumerate(NAMES)
        }
        gatherer = Gatherer(self.heap, 2, parts_come=False, asked=lambda: None, copied=lambda _: None)
        self.coordinator = Coordinator(parameters, limits, gatherer)

    @property
    def live_bytes(self):
        return [0, *self.heap.tape.live_bytes()][-1]

    def visit(self, moment, name, phase=Phase.FORWARD):
        weights = (name,) if name else ()
        self.coordinator.visit(Visit(0, phase, 1, 0, name, None, moment=moment, weights=weights, is_root=not name))
        return self.live_bytes

    def run(self, order=NAMES):
        """Return the bytes that live in the root, in each forward and in each backward."""
        within = [self.visit(Moment.ENTER, "")]
        for name in order:
            within.append(self.visit(Moment.ENTER, name))
            self.visit(Moment.LEAVE, name)
        for name in reversed(order):
            within.append(self.visit(Moment.ENTER_BACKWARD, name, Phase.BACKWARD))
            self.visit(Moment.LEAVE_BACKWARD, name, Phase.BACKWARD)
        self.coordinator.release_backward_leftovers()
        return within


def test_the_first_pass_gathers_one_weight_at_a_time_and_later_ones_fetch_ahead():
    passes = Passes(Limits(prefetch=2 * SIZE, live=4 * SIZE, reuse=0, persist=0))

    assert passes.run() == [0, 200, 200, 200, 200, 200, 200]
    assert passes.run() == passes.run() == [400, 1000, 600, 600, 600, 400, 200]
    assert passes.live_bytes == 0


def test_nothing_is_fetched_ahead_where_only_one_weight_may_be_live():
    passes = Passes(Limits(prefetch=2 * SIZE, live=SIZE, reuse=0, persist=0))

    passes.run()
    assert passes.run() == [200] * 7


def test_a_pass_that_goes_another_way_gathers_one_at_a_time_and_the_next_is_recorded_anew():
    passes = Passes(Limits(prefetch=2 * SIZE, live=4 * SIZE, reuse=0, persist=0))
    usual = [passes.run() for _ in range(2)][-1]

    other_way = ("b", "a", "c")
    # What was fetched ahead for the usual way is released; then each comes alone.
    assert passes.run(other_way)[1:] == [200] * 6
    assert passes.run(other_way) == [0, *[200] * 6]
    assert passes.run(other_way)[0] == usual[0]


@pytest.mark.parametrize(("reuse", "live_after_forward"), [(0, 0), (10 * SIZE, 3 * SIZE * ITEMSIZE)])
def test_what_is_used_again_within_the_reuse_distance_stays(reuse, live_after_forward):
    passes = Passes(Limits(prefetch=0, live=SIZE, reuse=reuse, persist=0))
    passes.run()

    passes.visit(Moment.ENTER, "")
    for name in NAMES:
        passes.visit(Moment.ENTER, name)
        passes.visit(Moment.LEAVE, name)
    assert passes.live_bytes == live_after_forward


def test_a_small_weight_is_whole_from_the_first_update_on():
    passes = Passes(Limits(prefetch=0, live=SIZE, reuse=0, persist=10), b=10)
    passes.run()
    passes.coordinator.release_and_reset_all()

    assert passes.live_bytes == 10 * ITEMSIZE
