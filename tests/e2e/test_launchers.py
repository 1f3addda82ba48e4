"""One command under every launcher; a run that is killed goes on under another, as if never stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftkit.records.files import read_record
from tests.e2e.command import flags, run

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
MORE = ["--set", "training.checkpoint_every=5", "--set", "model.gradient_checkpointing=1", "--learning-rate", 0.01]
"""8 steps make an epoch, 32 the run."""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def deepspeed(ranks):
    """The launcher of DeepSpeed, with the program of launch/."""
    start = [TOOLS / "deepspeed", "--quiet", "--num_accelerators", ranks, "--master_port", free_port()]
    return [*start, ROOT / "launch" / "train.py"]


def torchrun(ranks):
    """The launcher of torch, with the package as a module."""
    return [TOOLS / "torchrun", "--nproc-per-node", ranks, "--master-port", free_port(), "-m", "ftkit", "train"]


def launched(command, output):
    """Start a command in a session of its own; its output goes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        list(map(str, command)), stdout=output.open("w"), stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip


def finish(command, folder):
    """Run a command to its end; returns what it said."""
    output = folder.with_suffix(".txt")
    child = launched(command, output)
    try:
        assert child.wait(300) == 0, output.read_text()
    finally:
        kill_session(child)
    return output.read_text()


def kill_session(child):
    """Kill every process of a session without warning, as a machine that loses power would."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError, PermissionError, FileNotFoundError):
            if os.getsid(int(place.name)) == child.pid:
                os.kill(int(place.name), signal.SIGKILL)
    child.wait()


def kill_at_first_checkpoint(command, folder):
    """Start a command, and kill all of it when its first checkpoint is there."""
    child = launched(command, folder.with_suffix(".txt"))
    deadline = time.monotonic() + 300
    while not list((folder / "checkpoints").glob("step-*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.005)
    kill_session(child)
    assert read_record(folder).result is None, folder.with_suffix(".txt").read_text()
    return max(read_record(folder).steps, key=lambda line: line.step).step


def shared_buffers():
    """What DeepSpeed has left in the machine's shared memory."""
    return set(Path("/dev/shm").glob("deepspeed_*"))


def losses(folder):
    return {line.step: line.loss for line in read_record(folder).steps}


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """The losses of a run that nobody stopped, in one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = run(*flags(work, folder, *MORE))
    assert done.exit_code == 0, done.output
    return losses(folder)


@pytest.mark.slow  # the next test takes the other way, and tests/faults/test_kills_across_topologies.py one rank of two
def test_two_ranks_of_zero_2_that_are_killed_go_on_alone_on_the_plain_engine(work, whole, tmp_path):
    folder = tmp_path / "run"
    stopped_at = kill_at_first_checkpoint([*deepspeed(2), *flags(work, folder, *MORE), "--zero-stage", 2], folder)
    assert stopped_at < max(whole)
    done = run("--resume", folder, "--zero-stage", 0)
    assert done.exit_code == 0, done.output
    assert read_record(folder).run.engine == "plain"
    # fp32; two ranks sum in another order, and 32 updates by Adam carry that on.
    assert losses(folder) == pytest.approx(whole, rel=1e-5)


def test_one_process_that_is_killed_goes_on_as_two_ranks_of_zero_3(work, whole, tmp_path):
    folder = tmp_path / "run"
    alone = [sys.executable, ROOT / "launch" / "train.py"]
    stopped_at = kill_at_first_checkpoint([*alone, *flags(work, folder, *MORE)], folder)
    assert stopped_at < max(whole)
    finish([*torchrun(2), "--resume", folder, "--zero-stage", 3], folder)
    record = read_record(folder)
    assert (record.run.engine, record.run.world_size) == ("deepspeed", 2)
    assert losses(folder) == pytest.approx(whole, rel=1e-5)


def test_a_launcher_and_deepspeed_say_nothing_of_their_own_compile_nothing_and_leave_nothing(
    work, tmp_path, monkeypatch
):
    folder, extensions = tmp_path / "run", tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    before = shared_buffers()
    said = finish([*deepspeed(2), *flags(work, folder, "--max-steps", 2, "--zero-stage", 1)], folder)
    data = ("data ", "train is read from ", "train: ", "validation: ", "test: ")
    run_itself = (
        "plan: ",
        "new, drawn by the seed: ",
        "a checkpoint has ",
        "the whole job: about ",
        "starting DeepSpeed",
        "lora on 2 x cpu",
        "step 2/2 ",
        "validation at",
        "test at",
        "warning: training.epochs=4.0 has no effect: training.max_steps ends the run",
        "warning: validation: ",
        "warning: test: ",
    )
    summary = ("engine ", "steps ", "trainable ", "training ", "total ", "throughput ", "peak of ")
    places = ("the model", "all figures: ", "next: ", "the report: ")
    ours = (*data, *run_itself, *summary, *places)
    assert [line for line in said.splitlines() if not line.startswith(ours)] == []
    assert not extensions.exists()
    assert shared_buffers() <= before
