"""Nobody waits for a compilation that was killed."""

import logging
import os
import subprocess
import sys
import time

import pytest

from ftkit.engine import jit_watch as compiling

# What a rank does that needs an operation which is compiled at its first use.
COMPILES = """
import sys, time
from torch.utils.file_baton import FileBaton
baton = FileBaton(sys.argv[1])
if not baton.try_acquire(): baton.wait()
print("holds", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(compiling, "_LOADING_SECONDS", {True: 0.1, False: 90.0})
    monkeypatch.setattr(compiling, "_NETWORK", ())
    (tmp_path / "shm_comm").mkdir()
    return tmp_path / "shm_comm" / "lock"


def start(lock, seconds=60.0):
    return subprocess.Popen([sys.executable, "-c", COMPILES, lock, str(seconds)], stdout=subprocess.PIPE, text=True)


def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds()


def test_the_lock_of_a_killed_compilation_is_removed_and_said_so(lock, caplog):
    child = start(lock)
    wait_until(lock.exists)
    child.kill()
    child.wait()
    assert lock.exists()
    waits = start(lock, 0)
    with compiling.watched_compiling():
        assert waits.communicate(timeout=60)[0] == "holds\n"
    assert f"removed {lock}, which a compilation that was killed had left" in caplog.text


def test_the_lock_of_a_compilation_at_work_stays_and_what_it_compiles_is_said_again_and_again(lock, caplog):
    child = start(lock)
    wait_until(lock.exists)
    with compiling.watched_compiling(every_seconds=0.3):
        wait_until(lambda: len(caplog.records) >= 2)
    child.kill()
    child.wait()
    assert lock.exists()
    first, second = (record.getMessage() for record in caplog.records[:2])
    assert first == "compiling DeepSpeed's shm_comm; later starts need not"
    assert second.startswith("compiling DeepSpeed's shm_comm, since 0.")


def test_what_an_earlier_start_compiled_is_not_called_compiling_while_it_loads(lock, caplog):
    lock.with_name("shm_comm.so").touch()
    child = start(lock)
    wait_until(lock.exists)
    with compiling.watched_compiling():
        time.sleep(0.5)
    child.kill()
    child.wait()
    assert not caplog.records


def test_what_an_earlier_start_compiled_for_another_environment_is_said_to_compile_as_a_compiler_works(lock, caplog):
    lock.with_name("shm_comm.so").touch()
    child = start(lock)
    wait_until(lock.exists)
    compiler = subprocess.Popen(["sleep", "60"], cwd=lock.parent)
    with compiling.watched_compiling():
        wait_until(lambda: caplog.records)
    for process in (compiler, child):
        process.kill()
        process.wait()
    assert caplog.records[0].getMessage() == "compiling DeepSpeed's shm_comm; later starts need not"


def test_a_lock_on_a_disk_of_several_machines_stays_and_the_cure_is_said(lock, caplog, monkeypatch):
    lock.touch()
    monkeypatch.setattr(compiling, "_NETWORK", (compiling._file_system(lock),))
    with compiling.watched_compiling():
        wait_until(lambda: caplog.records)
    assert lock.exists()
    assert f"if nobody does, remove {lock}" in caplog.text


def test_a_lock_of_another_user_stays(lock, monkeypatch):
    lock.touch()
    monkeypatch.setattr(os, "getuid", lambda: lock.stat().st_uid + 1)
    with compiling.watched_compiling():
        time.sleep(0.5)
    assert lock.exists()


def test_where_nothing_is_compiled_nothing_is_said(lock, caplog):
    caplog.set_level(logging.DEBUG)
    with compiling.watched_compiling():
        time.sleep(0.2)
    assert not caplog.records
