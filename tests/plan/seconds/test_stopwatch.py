"""What steps show beside their operators: what each phase takes in asking for one."""

import mmap
from dataclasses import replace

import pytest
import torch

from ftkit.plan.seconds import cpu_rates
from ftkit.plan.seconds.samples import SAMPLES, Sample
from ftkit.plan.seconds.speed import Device, fresh_pages
from ftkit.plan.seconds.stopwatch import Part, Parts, Seen, Stopwatch
from ftkit.step.observer import Phase


def test_what_asking_costs_is_told_by_phase_and_in_the_median_of_its_parts():
    seen = Seen()
    seen.hooks.seconds = [3e-6, 5e-6, 4e-6]
    whole = {Phase.FORWARD: (1.0, 3.0, 6.0), Phase.BACKWARD: (0.4, 0.4, 0.4), Phase.OPTIMIZER: (0.1, 0.1, 0.1)}
    for number in range(3):
        bare = [Part(phase, seconds[number], 0, 0.0) for phase, seconds in whole.items()]
        seen.beside(bare, [Part(phase, 9.0, 100, 0.2) for phase in whole])
    device = seen.put_into(Device(1e9, 1e9, 1e9, 1e-5, is_asynchronous=False))
    # What operators take under the stopwatch, 0.2 seconds, is more than a whole update took: none is below nothing.
    assert device.hosts == pytest.approx({Phase.FORWARD: 0.028, Phase.BACKWARD: 0.002, Phase.OPTIMIZER: 0.0})
    assert device.host_seconds == device.hosts[Phase.FORWARD]
    assert device.hook_seconds == 4e-6


def test_parts_are_noted_one_by_one_with_the_operators_of_each():
    watch = Stopwatch()
    parts = Parts(watch, lambda: None)
    with watch:
        for phase, calls in ((Phase.FORWARD, 1), (Phase.BACKWARD, 2), (Phase.FORWARD, 3)):
            with parts.during(phase):
                for _ in range(calls):
                    torch.ones(1000).cumsum(0)
    assert [(one.phase, one.calls) for one in parts.each] == [
        (Phase.FORWARD, 2),
        (Phase.BACKWARD, 4),
        (Phase.FORWARD, 6),
    ]
    assert all(0 < one.computed <= one.seconds for one in parts.each)


def test_what_is_to_be_done_before_each_part_is_done_before_its_clock_runs():
    times = iter(range(9))
    watch = Stopwatch(clock=lambda: float(next(times)))
    parts = Parts(watch, watch.clock)
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        with parts.during(phase):
            pass
    assert [one.seconds for one in parts.each] == [1.0, 1.0]
    assert next(times) == 6  # three looks at the clock a part, the first before it runs


def test_what_fresh_pages_take_is_no_part_of_an_operators_time():
    given, rate = fresh_pages()
    shared = mmap.mmap(-1, 2**25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    watch = Stopwatch(given)
    with watch:
        torch.frombuffer(shared, dtype=torch.float32).zero_()
    (timed,) = watch.operators()["zero_", "float32"]
    assert watch.seconds - 2**25 / rate <= timed.seconds < 0.9 * watch.seconds


def test_a_samples_largest_micro_batches_are_as_large_as_a_runs_and_half_as_large_where_that_is_asked_for():
    for sample in SAMPLES:
        first, *others = (one.batch * one.length for one in sample.shapes(2048))
        assert first == 2048
        assert (1800 < others[0] <= 2048) is not sample.is_decoder  # of an odd length
        assert max(others[1:]) <= 512
        of_many = [one.batch * one.length for one in replace(sample, divided=2, is_one_of_many=True).shapes(2048)]
        assert of_many[0] == 1024
        assert max(of_many[1:]) <= 512


def test_caches_are_emptied_before_each_part_of_a_sample(tmp_path, monkeypatch):
    prepared = []

    def parts(watch, prepare):
        prepared.append(prepare.__self__)
        return Parts(watch, prepare)

    monkeypatch.setattr(cpu_rates, "Parts", parts)
    cpu_rates._time_sample(Sample("lora", is_decoder=True, width=64, length=8, batch=1), tmp_path, Seen(), 1)
    assert len(prepared) == 2  # bare, and watched
    assert all(other.nbytes >= 3 * 2**24 for other in prepared)
