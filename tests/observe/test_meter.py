"""The peaks of phases, from this system's own counters."""

import mmap

import pytest
import torch

from ftkit.machine import memory
from ftkit.machine.process import ProcessContext
from ftkit.observe.meter import (
    Meter,
    RankPeaks,
    Reading,
    gather,
    known_flops,
    memory_figures,
    planned_utilization,
)
from ftkit.records.schema import PhaseMeasurement, Prediction
from ftkit.step.observer import Phase

CPU = torch.device("cpu")
MIB = 2**20


def touch(size):
    """Take memory from the system, write to it, and give it back."""
    with mmap.mmap(-1, size) as block:
        for _ in range(0, size, MIB):
            block.write(b"x" * MIB)


def step(meter, sizes):
    for phase, size in sizes.items():
        with meter.during(phase):
            touch(size)


@pytest.fixture
def meter():
    if not memory._CLEAR.is_file():
        pytest.skip("this system cannot reset a process's peak (no /proc/self/clear_refs)")
    return Meter(CPU, every=4)


def process_bytes(meter):
    return {phase.phase: phase.peak_process_bytes for phase in meter.phases(0)}


def test_what_one_phase_held_is_not_counted_for_the_next(meter):
    step(meter, {Phase.FORWARD: 64 * MIB, Phase.BACKWARD: 192 * MIB, Phase.OPTIMIZER: MIB})
    found = process_bytes(meter)
    assert list(found) == ["load", "forward", "backward", "optimizer"]
    assert 100 * MIB < found["backward"] - found["forward"] < 156 * MIB
    assert found["optimizer"] < found["forward"]
    assert meter.overall().process_bytes == max(found.values())


def test_between_the_steps_that_are_told_apart_peaks_count_for_the_run_alone(meter):
    for _ in range(4):
        step(meter, {Phase.FORWARD: MIB, Phase.OPTIMIZER: MIB})
    before = process_bytes(meter)
    step(meter, {Phase.FORWARD: MIB, Phase.OPTIMIZER: MIB})  # the fifth: number 4 of every 4
    step(meter, {Phase.FORWARD: 256 * MIB, Phase.OPTIMIZER: MIB})
    assert max(process_bytes(meter).values()) < max(before.values()) + 64 * MIB
    assert meter.overall().process_bytes > max(before.values()) + 192 * MIB


def test_a_discarded_phase_leaves_nothing(meter):
    before = meter.overall().process_bytes
    meter.enter("counting")
    touch(256 * MIB)
    meter.discard("counting")
    assert "counting" not in process_bytes(meter)
    assert meter.overall().process_bytes < before + 128 * MIB


def test_an_evaluation_is_told_apart_whatever_the_step_is(meter):
    for _ in range(6):
        step(meter, {Phase.FORWARD: MIB, Phase.OPTIMIZER: MIB})
    step(meter, {Phase.EVALUATION: 192 * MIB})
    found = process_bytes(meter)
    assert set(found) == {"load", "forward", "optimizer", "evaluation"}
    assert found["evaluation"] > found["forward"] + 128 * MIB


def ranks_of(*sizes):
    return [
        RankPeaks(
            Reading(process_bytes=size, host_bytes=size),
            [PhaseMeasurement(phase="backward", rank=rank, peak_process_bytes=size),
             PhaseMeasurement(phase="load", rank=rank, peak_process_bytes=size // 2)],
        )
        for rank, size in enumerate(sizes)
    ]  # fmt: skip


def test_the_figures_are_of_the_rank_that_has_most_and_of_the_host_of_all():
    found = memory_figures(ranks_of(300, 500), CPU)
    assert (found["peak_process_bytes"], found["host_bytes"], found["peak_phase"]) == (500, 800, "backward")
    assert [phase.rank for phase in found["phases"]] == [0, 0, 1, 1]
    assert found["peak_active_bytes"] is None
    assert found["active_source"] is None
    assert found["process_source"] == "resident set"


def test_a_host_figure_that_one_rank_lacks_stays_empty():
    ranks = ranks_of(300, 500)
    ranks[1] = RankPeaks(Reading(), [])
    assert memory_figures(ranks, CPU)["host_bytes"] is None


def test_a_process_alone_gathers_itself(meter):
    (alone,) = gather(meter, ProcessContext())
    assert alone.whole.process_bytes > 0
    assert [phase.phase for phase in alone.phases] == ["load"]


def test_the_peak_of_a_card_is_the_tables_and_of_a_cpu_what_the_plan_timed():
    plan = Prediction(device_flops=5e10)
    assert known_flops("Tesla T4", "fp16", plan) == 65e12
    assert known_flops("cpu", "bf16", plan) == 5e10
    assert known_flops("cpu", "bf16", None) is None
    assert known_flops("some other card", "fp16", plan) is None


def test_utilization_is_the_plans_at_the_rate_of_tokens_that_was_measured():
    plan = Prediction(device_flops=5e10, tokens_per_second=1000.0, model_flops_utilization=0.8)
    assert planned_utilization(plan, 500.0, "cpu", "bf16") == pytest.approx(0.4)
    assert planned_utilization(plan, None, "cpu", "bf16") is None
    assert planned_utilization(plan, 500.0, "some other card", "bf16") is None
    assert planned_utilization(None, 500.0, "cpu", "bf16") is None
