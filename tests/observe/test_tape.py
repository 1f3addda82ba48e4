"""What a tape is told that no operator says."""

import torch

from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import LOAD


def test_a_storage_of_another_size_dies_and_is_born_again():
    recorder = Recorder()
    with recorder:
        weight = torch.zeros(8)
        weight.untyped_storage().resize_(0)
        recorder.resized(weight)
        weight.untyped_storage().resize_(64)
        recorder.resized(weight)
    assert list(recorder.tape.live_bytes()) == [32, 0, 64]


def test_what_went_to_the_host_is_not_born_again_when_an_operator_reads_it():
    recorder = Recorder()
    with recorder:
        weight = torch.zeros(8)
        recorder.leave(weight)
        view, made = weight.detach(), weight + 1
    assert list(recorder.tape.live_bytes()) == [32, 0, 32]
    assert recorder.number_of(view) is None
    assert recorder.number_of(made) == 1


def test_a_birth_belongs_to_the_stream_that_was_asked():
    recorder = Recorder()
    with recorder:
        first = torch.zeros(1)
        recorder.stream = 3
        second = torch.zeros(1)
    assert [birth.stream for birth in recorder.tape.births] == [0, 3]
    del first, second


def test_what_an_operator_holds_is_there_with_its_result_and_gone_with_its_end():
    recorder = Recorder(scratch=lambda op, _: (100, 28) if op.startswith("mul") else ())
    with recorder:
        one = torch.ones(8)
        two = one * 2
    assert list(recorder.tape.live_bytes()) == [32, 64, 164, 192, 92, 64]
    assert sum(times for (name, _, moved, _), times in recorder.tape.costs[LOAD, 0, None].items() if moved == 256) == 1
    del one, two
