"""A run that is asked to stop saves, says how to go on, exits with the code for it, and goes on as if never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ftkit.errors import InterruptedRunError
from ftkit.records.files import RECORD, read_record
from ftkit.training import evaluate
from ftkit.training.checkpoints import checkpoint
from tests.e2e.command import flags, run
from tests.faults.test_memory_that_runs_out import train, weights

MORE = ["--epochs", 30, "--set", "training.eval_every=200", "--no-plan", "--set", "training.log_every=1"]
RESUME_ME = 75


def start(work, folder, *more):
    command = [sys.executable, "-m", "ftkit", "train", *map(str, [*flags(work, folder, *MORE), *more])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_steps(folder, child, count=3):
    """Wait until a run has logged some steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        file = folder / RECORD
        if file.is_file() and file.read_text().count('"kind":"step"') >= count:
            return
        assert child.poll() is None, child.stdout.read()
        time.sleep(0.05)
    pytest.fail("no step was logged in two minutes")


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """The losses of the run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = run(*flags(work, folder, *MORE))
    assert done.exit_code == 0, done.output
    return [line.loss for line in read_record(folder).steps]


def test_a_stopped_run_saves_and_goes_on_as_if_never_stopped(work, tmp_path, whole):
    folder = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGUSR1):
        child = start(work, folder) if number == signal.SIGTERM else resume(folder)
        wait_for_steps(folder, child, 3 if number == signal.SIGTERM else count(folder) + 2)
        child.send_signal(number)
        said, code = child.communicate()[0], child.returncode
        assert code == RESUME_ME, said
        assert f"stopped by {number.name} after step" in said
        assert f"nothing is lost: go on with --resume {folder}" in " ".join(said.split())
        assert read_record(folder).result is None
    done = run("--resume", folder)
    assert done.exit_code == 0, done.output
    assert [line.loss for line in read_record(folder).steps] == whole


def count(folder):
    return (folder / RECORD).read_text().count('"kind":"step"')


def resume(folder):
    command = [sys.executable, "-m", "ftkit", "train", "--resume", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_signal_before_the_first_step_says_that_there_is_nothing_to_resume(work, tmp_path):
    child = start(work, tmp_path / "run", "--model", "demo", "--dataset", "demo")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not is_listening(child.pid):
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    said = child.communicate()[0]
    assert child.returncode == RESUME_ME, said
    assert "before the first step; there is nothing to resume" in " ".join(said.split())


def is_listening(pid):
    """Return whether a process handles SIGTERM, by the mask of caught signals that Linux shows."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


def signalling(function, number, *, at_call, times=1):
    """Return a function that sends a signal to this process when it is called for the n-th time."""
    calls = []

    def call(*arguments, **named):
        calls.append(number)
        if len(calls) == at_call:
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.2 * (times - 1))  # two that are pending at once count as one
        return function(*arguments, **named)

    return call


@pytest.fixture(scope="module")
def expected(work, tmp_path_factory):
    """The weights of a short run that nobody stops."""
    folder = tmp_path_factory.mktemp("expected")
    train(work, folder, *OFTEN)
    return weights(folder)


OFTEN = ["training.checkpoint_every=1", "training.eval_every=1"]
SAVE, EVALUATION = (checkpoint, "save_file"), (evaluate, "collate")


@pytest.mark.parametrize(
    ("number", "place"), [(signal.SIGTERM, SAVE), (signal.SIGUSR1, EVALUATION), (signal.SIGINT, EVALUATION)]
)
def test_a_signal_inside_a_save_or_an_evaluation_loses_nothing(number, place, work, tmp_path, monkeypatch, expected):
    module, name = place
    with monkeypatch.context() as asked:
        asked.setattr(module, name, signalling(getattr(module, name), number, at_call=5))
        with pytest.raises(InterruptedRunError, match=rf"stopped by {number.name} after step \d of 4; nothing is lost"):
            train(work, tmp_path, *OFTEN)
    train(work, tmp_path, *OFTEN, resume=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())


def test_a_second_ctrl_c_ends_at_once_even_inside_a_save_and_the_checkpoint_before_it_is_whole(
    work, tmp_path, monkeypatch, expected
):
    with monkeypatch.context() as asked:
        asked.setattr(checkpoint, "save_file", signalling(save_file, signal.SIGINT, at_call=5, times=2))
        with pytest.raises(KeyboardInterrupt):
            train(work, tmp_path, *OFTEN)
    train(work, tmp_path, *OFTEN, resume=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())
