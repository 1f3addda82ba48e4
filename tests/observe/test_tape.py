"""What a tape is told that no operator says."""

import torch

from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Birth, Role, Tape, Untouched
from ftkit.records.figures import Kind, MemoryBreakdown
from ftkit.step.observer import Phase


def test_a_storage_of_another_size_dies_and_is_born_again():
    recorder = Recorder()
    with recorder:
        weight = torch.zeros(8)
        weight.untyped_storage().resize_(0)
        recorder.live.resized(weight)
        weight.untyped_storage().resize_(64)
        recorder.live.resized(weight)
    assert list(recorder.tape.live_bytes()) == [32, 0, 64]


def test_what_went_to_the_host_is_not_born_again_when_an_operator_reads_it():
    recorder = Recorder()
    with recorder:
        weight = torch.zeros(8)
        recorder.live.leave(weight)
        view, made = weight.detach(), weight + 1
    assert list(recorder.tape.live_bytes()) == [32, 0, 32]
    assert recorder.live.number_of(view) is None
    assert recorder.live.number_of(made) == 1


def test_a_birth_belongs_to_the_stream_that_was_asked():
    recorder = Recorder()
    with recorder:
        first = torch.zeros(1)
        recorder.live.stream = 3
        second = torch.zeros(1)
    assert [birth.stream for birth in recorder.tape.births] == [0, 3]
    del first, second


def test_what_an_operator_holds_is_there_with_its_result_and_gone_with_its_end():
    recorder = Recorder(scratch=lambda op, _: (100, 28) if op.startswith("mul") else ())
    with recorder:
        one = torch.ones(8)
        two = one * 2
    assert list(recorder.tape.live_bytes()) == [32, 64, 164, 192, 92, 64]
    costs = recorder.tape.costs[Phase.LOAD, 0, None]
    assert sum(times for (_, _, moved, _), times in costs.items() if moved == 256) == 1
    del one, two


def test_what_is_held_and_hardly_written_to_takes_no_time():
    recorder = Recorder(scratch=lambda op, _: (Untouched(100),) if op.startswith("mul") else ())
    with recorder:
        one = torch.ones(8)
        two = one * 2
    assert max(recorder.tape.live_bytes()) == 164
    assert not any(name.endswith("scratch") for name, *_ in recorder.tape.costs[Phase.LOAD, 0, None])
    del one, two


def test_a_tape_tells_births_and_deaths_in_their_order_from_any_place():
    tape = Tape()
    first, second = (tape.add(Birth(size, Phase.FORWARD, 1, 0, "", None)) for size in (8, 4))
    tape.begin(first, 0)
    tape.begin(second, None)
    tape.end(first, 1)
    assert list(tape.walk()) == [(first, True, 0), (second, True, None), (first, False, 1)]
    assert list(tape.walk(1, 2)) == [(second, True, None)]
    assert list(tape.live_bytes()) == [8, 12, 4]


def test_what_a_recorder_is_told_of_is_of_one_kind_and_every_kind_is_a_part_of_a_breakdown():
    assert {role.kind for role in Role} == set(Kind) - {Kind.TEMPORARY}  # that is judged
    assert {kind.field for kind in Kind} == set(MemoryBreakdown.model_fields)
