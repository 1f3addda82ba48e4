"""How a job of several ranks ends, in real processes."""

import os
import signal
import subprocess
import sys

import pytest

from ftkit.sweep.sweep import explain_failure

PROGRAM = """
import sys, time, click, torch
from ftkit.cli.options import user_errors
from ftkit.machine.process import ProcessContext, first_decides, joined
from ftkit.errors import DataError

process = ProcessContext.from_environment()

def choose():
    if sys.argv[1] == "refused": raise DataError("refused by the first")
    return ["chosen"]

def work(index):
    if process.rank == 1 and index == 3:
        if sys.argv[1] == "mistake": raise DataError("planted in the data")
        if sys.argv[1] == "bug": raise IndexError("planted in the code")
        if sys.argv[1] == "late": time.sleep(1.5)
    # Several are under way at once, as DeepSpeed has them.
    waiting = [torch.distributed.all_reduce(torch.ones(50_000), async_op=True) for _ in range(8)]
    for one in waiting: one.wait()

@click.command()
@click.argument("how")
def run(how):
    with user_errors(process.rank), joined(process):
        assert first_decides(process, choose) == ["chosen"]
        for index in range(6): work(index)
    print("whole")

run()
"""


def launch(how: str, port: int) -> list[tuple[int, str]]:
    """Run two ranks; return how each ended and what it said."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.distributed
def test_a_rank_that_is_late_is_waited_for():
    assert [code for code, _ in launch("late", free_port())] == [0, 0]


@pytest.mark.distributed
def test_what_the_first_rank_refuses_all_refuse():
    ranks = launch("refused", free_port())
    assert [code for code, _ in ranks] == [3, 3]
    assert all("refused by the first" in said for _, said in ranks)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("how", "code", "sentence"),
    [("mistake", 3, "error on rank 1: planted in the data"), ("bug", 1, "IndexError: planted in the code")],
)
def test_a_rank_that_fails_says_why_and_the_other_says_that_it_lost_it(how, code, sentence):
    (first, first_said), (second, second_said) = launch(how, free_port())
    assert (first, second) == (10, code)
    assert sentence in second_said
    assert "another rank of this job ended early" in first_said
    assert "terminate called" not in first_said + second_said
    kind, reason = explain_failure(1, first_said + second_said)
    assert "planted" in reason
    assert kind == ("refused" if how == "mistake" else "crash")


@pytest.mark.parametrize(("place", "code"), [({"RANK": "0"}, 0), ({}, -signal.SIGABRT)], ids=["launched", "alone"])
def test_a_launched_process_ends_before_the_interpreter_cleans_up(place, code):
    program = (
        "import atexit, os\n"
        "from ftkit.machine.process import end_if_launched\n"
        "atexit.register(os.abort)\n"
        "print('whole')\n"
        "end_if_launched()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, **place}, text=True, capture_output=True)

    assert ended.returncode == code
    assert "whole" in ended.stdout or code
