"""What a search offers of ZeRO, and the window of gathered weights on a model of three."""

import pytest

from ftkit.config.rules import Force, broken_rules
from ftkit.config.tree import ModelConfig, RunConfig
from ftkit.engine.resolve import resolve
from ftkit.models.methods.full import Full
from ftkit.models.methods.lora import Lora
from ftkit.observe.tape import BACKWARD, FORWARD
from ftkit.plan.search import _sharing, changed
from ftkit.plan.target import find_target
from ftkit.plan.zero.gather import Limits, Weight, Window
from ftkit.plan.zero.module_events import ENTER, ENTER_BACKWARD, LEAVE, LEAVE_BACKWARD, Visit

SIZE = 100


def offered(method, target):
    config = RunConfig(task="causal-lm", model=ModelConfig(name="llama-2-7b"), method=method)
    engines = [changed(config, change) for change in _sharing()]
    return [
        (run.engine.zero_stage, run.engine.offload_optimizer, run.engine.offload_parameters)
        for run in engines
        if not list(broken_rules(resolve(run, target.devices).facts, Force.UNWISE))
    ]


def test_several_devices_are_offered_every_stage_the_lowest_first():
    assert [stage for stage, *_ in offered(Full(), find_target("t4", 4))] == [1, 2, 3, 2, 3]


def test_one_device_is_offered_only_what_goes_to_the_host():
    assert offered(Full(), find_target("t4")) == [(2, "cpu", "none"), (3, "cpu", "cpu")]
    assert offered(Lora(), find_target("t4")) == [(3, "cpu", "cpu")]


def test_a_cpu_is_not_offered_its_own_memory():
    assert offered(Full(), find_target()) == []


class Heap:
    """Counts the bytes that live."""

    def __init__(self):
        self.sizes, self.live = [], set()

    def born(self, size):
        self.sizes.append(size)
        self.live.add(len(self.sizes) - 1)
        return len(self.sizes) - 1

    def died(self, number):
        self.live.remove(number)

    @property
    def num_bytes(self):
        return sum(self.sizes[number] for number in self.live)


def walk(window, heap, names):
    """One forward and backward; returns the live bytes within each module's forward."""
    within = []

    def visit(op, name, phase):
        window.visit(Visit(0, phase, 1, 0, name, None, op=op, weights=(name,) if name else (), is_root=not name))

    visit(ENTER, "", FORWARD)
    for name in names:
        visit(ENTER, name, FORWARD)
        within.append(heap.num_bytes)
        visit(LEAVE, name, FORWARD)
    for name in reversed(names):
        visit(ENTER_BACKWARD, name, BACKWARD)
        visit(LEAVE_BACKWARD, name, BACKWARD)
    window.end_backward()
    return within


@pytest.mark.parametrize("live", [SIZE, 4 * SIZE])
def test_the_first_pass_gathers_one_weight_at_a_time_and_later_ones_what_the_limit_allows(live):
    names, heap = ["a", "b", "c"], Heap()
    weights = {(None, name): Weight(SIZE, 2, order, False, False) for order, name in enumerate(names)}
    limits = Limits(ranks=2, prefetch=2 * SIZE, live=live, reuse=0, persist=0, bucket=SIZE, copies=0)
    window = Window(weights, {}, limits, heap)

    assert walk(window, heap, names) == [2 * SIZE] * 3
    later = walk(window, heap, names)
    assert heap.num_bytes == 0
    if live == SIZE:  # no room to fetch ahead while one is there
        assert later == [2 * SIZE] * 3
    else:  # a and b come in one flat buffer, are copied out of it together, and c is on its way
        assert later[0] == 2 * (2 * SIZE) + 2 * (2 * SIZE) + 2 * SIZE
