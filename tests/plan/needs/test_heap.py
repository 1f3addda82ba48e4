"""What lies free in the heap at the worst moment of a process."""

import pytest

from ftkit.observe.peaks import find_peak
from ftkit.observe.tape import Birth, Tape
from ftkit.plan.needs.heap import HEAP_BYTES, HEAP_SHARE, free_in_heap
from ftkit.step.observer import Phase

MB = 10**6
SET = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def tape_of(loaded, *parts):
    """Return a tape on which each part, in MB, lives and dies before the next one is born."""
    tape = Tape()

    def born(size, phase):
        number = tape.add(Birth(size * MB, phase, 1, 0, "", None))
        tape.begin(number, None)
        return number

    born(loaded, Phase.LOAD)
    tape.marks.append((len(tape.events), Phase.LOAD))
    for part in parts:
        for number in [born(size, Phase.FORWARD) for size in part]:
            tape.end(number, None)
    tape.marks.append((len(tape.events), Phase.FORWARD))
    return tape


TABLE, LAYERS = (47,), (25, 25)


@pytest.mark.parametrize(
    ("parts", "stays"),
    [
        ((TABLE, LAYERS, TABLE), 47),  # the heap keeps what the layers took while the table has come again
        ((LAYERS, LAYERS), 0),
        ((TABLE, TABLE), 0),  # each time the system gives it and takes it back
        ((TABLE + LAYERS,), 0),  # all of it lives at the peak
    ],
)
def test_the_heap_keeps_its_worst_while_larger_blocks_have_theirs(parts, stays, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", SET)
    tape = tape_of(20, *parts)
    comes_and_goes = max(sum(size for size in part if size < 32) for part in parts)
    found = free_in_heap(tape, find_peak(tape, int).active_bytes)
    assert found == stays * MB + int(HEAP_SHARE * comes_and_goes * MB)


def test_blocks_that_stay_from_step_to_step_leave_nothing_free_between_them(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", SET)
    tape = tape_of(20, LAYERS)
    tape.begin(tape.add(Birth(30 * MB, Phase.OPTIMIZER, 1, 0, "", None)), None)  # a moment
    assert free_in_heap(tape, 100 * MB) == int(HEAP_SHARE * (70 - 50) * MB), "of the layers, what a moment replaces"


def test_a_heap_that_was_not_set_keeps_all_that_comes_and_goes_up_to_a_bound(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    few, many = tape_of(20, TABLE, LAYERS), tape_of(20, LAYERS * 8)
    assert free_in_heap(few, find_peak(few, int).active_bytes) == 50 * MB
    assert free_in_heap(many, find_peak(many, int).active_bytes) == HEAP_BYTES
