"""The heap of the C library, in processes of their own, since it is set as a process begins."""

import os
import subprocess
import sys

import pytest

from ftkit.machine import heap

pytestmark = pytest.mark.skipif(not heap._is_glibc(), reason="the C library is not glibc")

_PRINTS = (
    "import os, sys; from ftkit.machine.heap import is_whole, keep_heap_whole; {before}; keep_heap_whole(); "
    "print(is_whole(), os.getpid(), sys.argv[1:], sys.flags.utf8_mode, os.environ.get('GLIBC_TUNABLES'))"
)


def process(before="pass", **environment):
    """Return the process that called `keep_heap_whole` after a statement, and the words that it printed."""
    own = ("GLIBC_TUNABLES", heap._MARK)
    with subprocess.Popen(
        [sys.executable, "-X", "utf8", "-c", _PRINTS.format(before=before), "--rank", "4"],
        env={name: value for name, value in os.environ.items() if name not in own} | environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        return child.pid, child.communicate()[0].strip()


def test_a_process_begins_again_with_its_number_its_flags_and_the_heap_set():
    pid, printed = process(GLIBC_TUNABLES="glibc.rtld.nns=4")
    assert printed.startswith(f"True {pid} ['--rank', '4'] 1 glibc.rtld.nns=4:glibc.malloc.tcache_count=0:")


def test_what_the_user_has_set_of_the_heap_stays():
    pid, printed = process(GLIBC_TUNABLES="glibc.malloc.arena_max=1")
    assert printed == f"False {pid} ['--rank', '4'] 1 glibc.malloc.arena_max=1"


def test_a_start_that_takes_the_setting_away_is_not_made_again_and_again():
    pid, printed = process("os.environ.pop('GLIBC_TUNABLES', None)")
    assert printed == f"False {pid} ['--rank', '4'] 1 None"


def test_a_system_that_cannot_start_a_program_again_goes_on_with_the_heap_as_it_is():
    pid, printed = process("sys.executable = '/nowhere/python'", GLIBC_TUNABLES="glibc.rtld.nns=4")
    assert printed == f"False {pid} ['--rank', '4'] 1 glibc.rtld.nns=4"


def test_a_c_library_that_does_not_know_the_question_is_not_glibc(monkeypatch):
    def unknown(_):
        raise OSError(22, "Invalid argument")  # as musl answers

    monkeypatch.setattr(os, "confstr", unknown)
    assert not heap._is_glibc()


def test_what_is_free_in_the_heap_goes_back_to_the_system():
    code = (
        "from ftkit.machine.heap import trim; from ftkit.machine.memory import _STATUS; import re\n"
        "def resident(): return int(re.search(r'VmRSS:\\s+(\\d+)', _STATUS.read_text())[1]) // 1024\n"
        "held = [b'x' * (1 << 20) for _ in range(65)]; before = resident()\n"
        "last = held.pop(); del held; kept = resident(); trim(); print(before - kept, kept - resident())"
    )
    tuned = os.environ | {"GLIBC_TUNABLES": ":".join(f"{name}={value}" for name, value in heap._TUNABLES.items())}
    printed = subprocess.run([sys.executable, "-c", code], env=tuned, capture_output=True, text=True, check=True).stdout
    kept, given = map(int, printed.split())
    assert kept < 2  # nothing goes back by itself
    assert given > 60


def test_what_arrow_reserves_leaves_room_below_a_limit_on_the_process():
    code = (
        "from ftkit.machine.heap import keep_heap_whole; keep_heap_whole()\n"
        "import pyarrow; pyarrow.array(['text'] * 999)\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmData')).split()[1])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MIMALLOC_ARENA_RESERVE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**19  # KiB, where Arrow by itself reserves twice as many
