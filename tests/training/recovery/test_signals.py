"""A signal is noted while a run trains, raises while there is nothing to save, and a second Ctrl-C ends at once."""

import os
import signal
import threading

import pytest

from ftkit.errors import InterruptedRunError
from ftkit.training.recovery.signals import SIGNALS, StopNow, StopRequest, Work


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_by_its_name_while_weights_change(number):
    with StopRequest(is_alone=True).listening() as stop, stop.during(Work.CHANGING):
        os.kill(os.getpid(), number)
        assert stop.name == number.name


def test_the_first_signal_is_the_one_that_is_told():
    with StopRequest(is_alone=True).listening() as stop, stop.during(Work.CHANGING):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.name == "SIGTERM"


def test_before_the_first_step_a_signal_ends_the_run_with_the_code_that_means_try_again():
    with (
        pytest.raises(InterruptedRunError, match="SIGTERM before the first step") as caught,
        StopRequest(is_alone=True).listening(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == os.EX_TEMPFAIL


def test_a_second_ctrl_c_ends_at_once():
    with StopRequest(is_alone=True).listening() as stop, stop.during(Work.CHANGING):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_as_before_when_a_run_is_over():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with StopRequest(is_alone=True).listening():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_a_thread_other_than_the_main_one_trains_without_handlers():
    errors = []

    def run() -> None:
        try:
            with StopRequest(is_alone=True).listening() as stop, stop.during(Work.CHANGING):
                assert stop.name is None
        except Exception as error:  # told to the test below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors


def test_what_only_reads_is_dropped_by_a_process_that_is_alone():
    with StopRequest(is_alone=True).listening() as stop, stop.during(Work.CHANGING):
        with pytest.raises(StopNow), stop.during(Work.READING):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"


def test_a_signal_that_came_before_drops_what_only_reads_at_its_start():
    with StopRequest(is_alone=True).listening() as stop, stop.during(Work.CHANGING):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopNow), stop.during(Work.READING):
            pytest.fail("the work began")


def test_ranks_that_others_wait_for_finish_what_they_read():
    with StopRequest(is_alone=False).listening() as stop, stop.during(Work.CHANGING), stop.during(Work.READING):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"
