"""Each rank notes the step it began, and the rank that has been silent for longest is the one that is named."""

import os

from ftkit.machine.process import ProcessContext
from ftkit.training.recovery.heartbeat import Heartbeat, describe_silence, last_beats

FIRST, SECOND = (ProcessContext(rank=rank, world_size=2) for rank in range(2))


def test_a_process_alone_writes_nothing(tmp_path):
    Heartbeat(tmp_path, ProcessContext()).beat(1)
    assert not list(tmp_path.iterdir())
    assert describe_silence(tmp_path, ProcessContext()) == ""


def test_the_silent_rank_is_named_with_its_last_step(tmp_path):
    for process, step in ((FIRST, 9), (SECOND, 7)):
        Heartbeat(tmp_path, process).beat(step)
    file = tmp_path / "ranks" / "rank-1"
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 90))
    assert [beat.rank for beat in last_beats(tmp_path)] == [1, 0]
    assert describe_silence(tmp_path, FIRST) == "rank 1 was last heard of 1 min 30 s ago, at step 7"


def test_a_rank_does_not_name_itself(tmp_path):
    Heartbeat(tmp_path, FIRST).beat(3)
    assert describe_silence(tmp_path, FIRST) == ""


def test_quick_steps_are_written_once_a_second(tmp_path):
    heart = Heartbeat(tmp_path, FIRST)
    for step in range(1, 100):
        heart.beat(step)
    assert last_beats(tmp_path)[0].step == 1
