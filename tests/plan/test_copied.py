"""Work that a copy of this process does."""

import os
import signal
import threading

import pytest
import torch

from ftkit.errors import DoesNotFitError
from ftkit.machine.memory import resident_bytes
from ftkit.plan.copied import CopyLostError, in_a_copy
from ftkit.plan.seconds.speed import threads

SIZE = 64 * 2**20


def test_a_copy_returns_what_its_work_returns_and_tells_what_that_tells():
    told: list[object] = []

    def work(note):
        note("first")
        note("then")
        return os.getpid(), torch.ones(300, 300).mm(torch.ones(300, 300)).sum().item()

    process, total = in_a_copy(work, told.append)
    assert process != os.getpid()
    assert total == 300**3
    assert told == ["first", "then"]


def in_many_threads(compute):
    """Threads that compute for the first time at one moment; returns what went wrong."""
    together, failed = threading.Barrier(12), []

    def run():
        together.wait()
        try:
            compute()
        except RuntimeError as error:
            failed.append(str(error))

    started = [threading.Thread(target=run) for _ in range(12)]
    for one in started:
        one.start()
    for one in started:
        one.join()
    return failed


def test_many_threads_of_a_copy_may_compute_for_the_first_time_at_one_moment():
    numbers = torch.ones(200_000)
    with threads(2):  # or none of them would ask torch for its pool
        numbers.add(1)
        for _ in range(8):  # by itself torch fails in nine of ten copies
            assert in_a_copy(lambda _: in_many_threads(lambda: numbers.add(1)), print) == []


def test_the_memory_of_the_work_ends_with_the_copy():
    def work(_):
        numbers = list(range(SIZE // 32))
        return numbers[::2][-1], resident_bytes()

    before = resident_bytes()
    last, taken = in_a_copy(work, print)
    assert last == SIZE // 32 - 2
    assert taken > SIZE
    assert resident_bytes() < before + SIZE / 8


def test_what_the_work_raises_is_raised_here():
    def work(_):
        raise DoesNotFitError("it does not fit")

    with pytest.raises(DoesNotFitError, match=r"^it does not fit$"):
        in_a_copy(work, print)


def test_a_copy_that_is_killed_is_told_from_an_answer():
    with pytest.raises(CopyLostError, match=f"ended with {-signal.SIGKILL}"):
        in_a_copy(lambda _: os.kill(os.getpid(), signal.SIGKILL), print)
