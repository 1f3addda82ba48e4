"""What a run has saved is opened by a copy of it that was made early, or else by a fresh process."""

import os
import resource
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ftkit.config.files import load_config
from ftkit.machine.process import ProcessContext
from ftkit.training import standby
from ftkit.training.standby import Standby, needed, open_freshly, stand_by

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there a process is copied")

ANSWERING = """
import sys, threading
from pathlib import Path
import torch

folder = Path(sys.argv[1])
numbers, together = torch.empty(200_000), threading.Barrier(12)  # and nothing is computed yet

def compute():
    together.wait()
    try:
        numbers.add(1)
    except RuntimeError as error:
        sys.stderr.write(str(error))

started = [threading.Thread(target=compute) for _ in range(12)]
for one in started:
    one.start()
for one in started:
    one.join()
product = torch.ones(512, 512) @ torch.ones(512, 512)  # by all of OpenMP's threads
(folder / "answer").write_text(f"{float(product.sum())}")
sys.stderr.write("error: as asked" if (folder / "fail").exists() else "")
sys.exit(3 if (folder / "fail").exists() else 0)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Have a small program run in the place of the one that opens a model; returns the folder to ask with."""
    (tmp_path / "answering_program.py").write_text(ANSWERING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(standby, "_PROGRAM", "answering_program")
    return tmp_path


@pytest.fixture
def two_threads():
    """Have OpenMP start a second thread here, which a copy lacks, and would wait for."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(512, 512) @ torch.ones(512, 512)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_copy_answers_as_a_fresh_process_does_though_openmp_has_threads_that_it_lacks(program):
    # By itself torch fails in one copy of three, where several threads ask for its own at one moment.
    for opened in (*(Standby().open for _ in range(8)), open_freshly):
        ended = opened(program, 60.0)
        assert (ended.code, ended.printed) == (0, "")
        assert float((program / "answer").read_text()) == 512.0**3
        (program / "answer").unlink()


@pytest.mark.parametrize("num_files", [0, 1024], ids=["few files are open", "more files are open than `select` takes"])
def test_what_a_copy_ends_with_and_writes_is_told(num_files, program):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * num_files:
        pytest.skip("the system allows too few open files")
    (program / "fail").touch()
    with ExitStack() as opened:
        for _ in range(num_files):
            opened.enter_context(Path(os.devnull).open())
        ended = Standby().open(program, 60.0)
    assert (ended.code, ended.printed) == (3, "error: as asked")


def test_a_copy_that_takes_too_long_is_killed(program):
    (program / "answering_program.py").write_text("import time\ntime.sleep(60)\n")
    copy = Standby()
    with pytest.raises(TimeoutError):
        copy.open(program, 0.2)
    assert not is_running(copy._pid)


def test_a_copy_that_the_system_has_ended_says_so_by_the_signal(program):
    copy = Standby()
    os.kill(copy._pid, 9)
    assert copy.open(program, 60.0).code == -9


def test_a_copy_ends_when_it_is_forgotten_and_for_a_long_run_it_is_sent_away():
    forgotten, sent_away, kept = Standby(), Standby(), Standby()
    pids = forgotten._pid, sent_away._pid
    del forgotten
    assert needed(sent_away, 3600.0) is None
    assert not any(map(is_running, pids))
    assert needed(kept, 60.0) is needed(kept, None) is kept
    assert is_running(kept._pid)


def test_a_copy_ends_when_its_run_is_killed(tmp_path):
    said = tmp_path / "pid"
    code = (
        "import os; from pathlib import Path; from ftkit.training.standby import Standby; "
        "copies = Standby(), Standby(); "  # each holds the other's pipe open
        f"Path({str(said)!r}).write_text(str(copies[0]._pid)); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert said.exists()
    deadline = time.monotonic() + 10.0
    while is_running(int(said.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(int(said.read_text()))


@pytest.mark.parametrize(
    ("settings", "process"),
    [
        (["output.reopen=false"], ProcessContext()),
        ([], ProcessContext(rank=0, world_size=2, local_world_size=2)),
        ([], ProcessContext(launcher="deepspeed")),
    ],
)
def test_no_copy_is_made_where_nobody_would_ask_it_or_a_launcher_holds_connections(settings, process, monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # tests that run beside each other have a thread for it
    assert stand_by(load_config(settings=settings), process) is None
    alone = stand_by(load_config(), ProcessContext())
    assert alone is not None


def test_no_copy_is_made_of_a_process_whose_other_threads_may_hold_locks():
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait)
    thread.start()
    try:
        assert stand_by(load_config(), ProcessContext()) is None
    finally:
        is_over.set()
        thread.join()


def is_running(pid: int) -> bool:
    """Return whether a process is there and has not ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
