"""A signal to the launcher alone: its ranks notice that it is gone, save and end; the run can go on."""

import os
import re
import signal
import sys

import pytest

from ftkit.records.files import CHECKPOINTS, RECORD, read_record
from ftkit.training.checkpoints.checkpoint import list_checkpoints
from tests.e2e.command import flags, run
from tests.faults.launched import ROOT, TOOLS, Launched

pytestmark = pytest.mark.distributed

LONG = ["--epochs", 40, "--no-plan", "--set", "training.eval_every=1000"]
LAUNCHERS = {
    "deepspeed": [TOOLS / "deepspeed", "--num_accelerators", 2, "--master_port", 29533, ROOT / "launch" / "train.py"],
    "torchrun": [TOOLS / "torchrun", "--standalone", "--nproc-per-node", 2, ROOT / "launch" / "train.py"],
    "ftkit": [sys.executable, "-m", "ftkit", "train", "--num-devices", 2],
}
CASES = [(name, number) for name in LAUNCHERS for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)]


def interrupt(name, number, folder, *arguments):
    """Start a run, signal its launcher, wait until its ranks have ended; returns what was said and its exit code."""
    with Launched([*LAUNCHERS[name], *arguments], folder.with_suffix(".txt")) as job:
        job.wait_until(lambda: has_steps(folder))
        ranks = [job.rank(0), job.rank(1)]
        os.kill(job.process.pid, number)
        code = job.end()
        job.wait_until_gone(ranks)
        return job.said(), code


def has_steps(folder):
    file = folder / RECORD
    return file.is_file() and file.read_text().count('"kind":"step"') > 2


def test_ranks_save_and_end_when_the_launcher_of_deepspeed_is_signalled_alone(work, tmp_path):
    folder = tmp_path / "run"
    said, code = interrupt("deepspeed", signal.SIGTERM, folder, *flags(work, folder, *LONG, "--engine", "plain"))
    assert code == -signal.SIGTERM
    # whichever rank notices first tells the other
    assert re.search("stopped by (the end of its launcher|a request to another rank) after step", said), said
    assert list_checkpoints(folder / CHECKPOINTS)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "name"), [("compare", "lora"), ("tune", "trial-000")])
def test_a_training_saves_and_ends_when_the_command_of_several_is_killed(command, name, work, tmp_path):
    folder = tmp_path / "all" / name
    several = ["--methods", "lora,full"] if command == "compare" else ["--trials", "2"]
    long = [one for one in LONG if one != "--no-plan"]
    given = flags(work, tmp_path / "all", *long, "--set", "training.plan_first=false", *several)
    with Launched([sys.executable, "-m", "ftkit", command, *given], tmp_path / "said.txt") as job:
        job.wait_until(lambda: has_steps(folder))
        trainings = job.started()
        os.kill(job.process.pid, signal.SIGKILL)
        assert job.end() == -signal.SIGKILL
        job.wait_until_gone(trainings)
    assert list_checkpoints(folder / CHECKPOINTS)
    assert read_record(folder).result is None


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """The losses of the run in one process that nobody stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(*flags(work, folder, *LONG)).exit_code == 0
    return [line.loss for line in read_record(folder).steps]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_run_whose_launcher_is_signalled_alone_goes_on_as_if_never_stopped(
    name, number, work, tmp_path, whole, record_property
):
    folder = tmp_path / "run"
    said, code = interrupt(name, number, folder, *flags(work, folder, *LONG, "--zero-stage", 2))
    record_property("exit code", code)
    assert code != 0
    if name == "ftkit" and number != signal.SIGKILL:
        assert code == 128 + number
        assert "Traceback" not in said
    assert "nothing is lost: go on with --resume" in said
    assert read_record(folder).result is None
    assert run("--resume", folder, "--engine", "plain", "--zero-stage", 0).exit_code == 0
    # fp32; two ranks sum in another order than one, for as long as the launcher lives.
    assert [line.loss for line in read_record(folder).steps] == pytest.approx(whole, rel=1e-5, abs=1e-6)
