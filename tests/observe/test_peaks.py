"""What a tape of real tensors says of its peak and its steps, on a program of a few tensors in sight."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftkit.observe.peaks import find_peak, phase_peaks, timeline
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Birth, Role, Tape
from ftkit.step.observer import Phase

KIB = 1024


def zeros(kibibytes: int) -> torch.Tensor:
    return torch.zeros(kibibytes * KIB, dtype=torch.uint8)


def two_steps() -> tuple[Recorder, torch.Tensor]:
    """Weights of 8 KiB; each step an activation of 4 and a gradient of 2; the first leaves a moment of 1 and a KiB."""
    recorder, weights = Recorder(), zeros(8)
    with recorder.inside(nn.Linear(1, 1), {}):
        recorder.see([("weights", weights)], Role.PARAMETER)
        recorder.mark(Phase.LOAD)
        moments = []
        for step in (1, 2):
            recorder.begin_step(step)
            with recorder.during(Phase.FORWARD):
                activation = zeros(4)
            with recorder.during(Phase.BACKWARD):
                gradient = zeros(2)
                del activation
            with recorder.during(Phase.OPTIMIZER):
                if step == 1:
                    moments.append(zeros(1))
                del gradient
    return recorder, weights


def test_each_phase_has_its_own_peak():
    tape = two_steps()[0].tape
    found = {phase: peak.active_bytes for phase, peak in phase_peaks(tape, {}).items()}
    assert found == {Phase.LOAD: 8 * KIB, Phase.FORWARD: 13 * KIB, Phase.BACKWARD: 15 * KIB, Phase.OPTIMIZER: 11 * KIB}
    assert all(peak.breakdown.total_bytes == peak.active_bytes for peak in phase_peaks(tape, {}).values())


def test_a_peak_in_a_layer_that_another_stood_for_is_named_for_its_own():
    traced = Birth(KIB, Phase.FORWARD, 1, 0, "model.layers.3.mlp.experts.0.up_proj", 3)
    tape = Tape(births=[traced, replace(traced.in_layer(31), size=2 * KIB)])
    tape.begin(0, 3)
    tape.end(0, 3)
    tape.begin(1, 31)
    assert find_peak(tape).module == "model.layers.31.mlp.experts.0.up_proj"


def test_the_largest_at_the_peak_are_those_that_live_then_with_their_kind_and_operator():
    largest = phase_peaks(two_steps()[0].tape, {})[Phase.BACKWARD].largest
    assert [(one.num_bytes, one.kind) for one in largest] == [
        (8 * KIB, "parameter"), (4 * KIB, "activation"), (2 * KIB, "gradient"), (1 * KIB, "optimizer"),
    ]  # fmt: skip
    assert largest[1].op.startswith("zeros")


def test_what_a_backward_makes_is_named_for_the_layer_that_it_goes_through():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    recorder = Recorder()
    with recorder.inside(model, {"0": 0, "1": 1}):
        recorder.begin_step(1)
        with recorder.during(Phase.FORWARD):
            out = model(torch.ones(3, 64))
        with recorder.during(Phase.BACKWARD):
            out.sum().backward()
    largest = phase_peaks(recorder.tape, {"0": 0, "1": 1})[Phase.BACKWARD].largest
    assert {one.module for one in largest if one.kind == "gradient" and one.shape == (64, 64)} == {"0", "1"}


def test_only_the_storages_of_the_device_at_work_are_counted():
    recorder = Recorder(device_type="meta")
    with recorder.inside(nn.Linear(1, 1), {}):
        here, elsewhere = torch.zeros(KIB, device="meta"), zeros(4)
        recorder.mark(Phase.LOAD)
    assert recorder.tape.peak_bytes() == here.untyped_storage().nbytes()
    del elsewhere


def test_a_tensor_that_was_made_under_the_recorder_can_still_be_said_to_be_an_input():
    recorder = Recorder()
    with recorder.inside(nn.Linear(1, 1), {}):
        batch = zeros(4)
        recorder.see([("batch", batch)], Role.INPUT)
        recorder.mark(Phase.LOAD)
    assert phase_peaks(recorder.tape, {})[Phase.LOAD].breakdown.buffer_bytes == 4 * KIB


def test_the_timeline_of_a_step_ends_with_it_and_its_highest_moment_is_the_peak():
    tape = two_steps()[0].tape
    line = timeline(tape, 7, 0, {})
    totals = [sum(parts) for parts in zip(*line.live_bytes.values(), strict=True)]
    assert max(totals) == 15 * KIB
    assert set(line.phases) == {Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER}
    assert line.step == 7
    assert line.largest_tensors[0].num_bytes == 8 * KIB


def test_what_dies_after_the_recording_is_no_part_of_the_tape():
    recorder, weights = two_steps()
    before = list(recorder.tape.events)
    del weights
    assert recorder.tape.events == before


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_flops_of_a_model_are_those_of_its_matrices_however_often_they_are_computed(recomputes):
    """Three samples through 8 x 16 and 16 x 4; the backward has both weights' gradients and one input's."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    first, second = 2 * 3 * 8 * 16, 2 * 3 * 16 * 4
    recorder, batch = Recorder(), torch.ones(3, 8)
    with recorder.inside(model, {"0": 0, "1": 1}):
        recorder.begin_step(2)
        with recorder.during(Phase.FORWARD):
            out = checkpoint(model, batch, use_reentrant=False) if recomputes else model(batch)
        with recorder.during(Phase.BACKWARD):
            out.sum().backward()
    assert (recorder.tape.recomputed_flops.total() > 0) == recomputes
    assert recorder.tape.model_flops(2) == (first + second) + (first + 2 * second)
