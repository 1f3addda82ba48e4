"""What is written in a thread keeps no step waiting, and what goes wrong there is not lost."""

import threading

import pytest

from ftkit.training.checkpoints.writer import Writer


def failing():
    raise OSError("the disk is gone")


def test_steps_go_on_while_a_write_does_and_the_next_write_waits_for_it():
    writer, may_end, order = Writer(), threading.Event(), []

    def slow():
        may_end.wait()
        order.append("slow")

    writer.start(slow)
    writer.check()
    order.append("a step")
    threading.Timer(0.05, may_end.set).start()
    writer.start(lambda: order.append("next"))
    writer.wait()
    assert order == ["a step", "slow", "next"]


@pytest.mark.parametrize("look", [Writer.wait, lambda writer: writer.start(lambda: None)])
def test_what_a_write_raised_is_raised_where_the_run_looks_next_and_once(look):
    writer = Writer()
    writer.start(failing)
    with pytest.raises(OSError, match="the disk is gone"):
        look(writer)
    writer.check()
    writer.wait()


def test_a_step_finds_what_a_write_raised_that_has_ended():
    writer = Writer()
    writer.start(failing)
    with pytest.raises(OSError, match="the disk is gone"):
        check_until_it_raises(writer)


def check_until_it_raises(writer):
    while True:
        writer.check()


def end_with(writer, error, write):
    """Run a block that fails after it has begun a write."""
    with writer.finished():
        writer.start(write)
        raise error


def test_a_run_that_fails_waits_for_its_last_write_and_tells_what_both_raised():
    written = []
    with pytest.raises(ValueError, match="the run"):
        end_with(Writer(), ValueError("the run fails"), lambda: written.append(1))
    assert written == [1]
    with pytest.raises(OSError, match="the disk is gone") as told:
        end_with(Writer(), ValueError("the run fails"), failing)
    assert isinstance(told.value.__cause__, ValueError)


def test_a_second_interrupt_does_not_wait_for_a_write():
    may_end = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        end_with(Writer(), KeyboardInterrupt(), may_end.wait)
    may_end.set()
