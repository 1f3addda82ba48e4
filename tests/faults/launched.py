"""Real processes of a launcher: start them, find one of their ranks, wait for what they do, and leave none behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
DEADLINE = 120.0
"""Seconds after which a test gives up; none of them asserts a time."""


class Launched:
    """A command whose output goes into a file, and all that it starts, which a word in its environment tells."""

    def __init__(self, command, output):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
        environment |= {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "LAUNCHED_BY": str(output)}
        self.output = output
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=output.open("w"), stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self._processes(f"LAUNCHED_BY={self.output}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def rank(self, number):
        """Return the process of a rank: the one that has been told to be it."""
        return next(self._processes(f"LAUNCHED_BY={self.output}", f"RANK={number}"))

    def ranks(self):
        """Return the processes of all ranks that this command has started."""
        words = [f"LAUNCHED_BY={self.output}"]
        return [pid for number in range(8) for pid in self._processes(*words, f"RANK={number}")]

    def started(self):
        """Return all processes that this command has started."""
        return [pid for pid in self._processes(f"LAUNCHED_BY={self.output}") if pid != self.process.pid]

    @staticmethod
    def _processes(*words):
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if set(words) <= set((place / "environ").read_text().split("\0")):
                    yield int(place.name)

    def said(self):
        """Return the output so far, in one line."""
        return " ".join(self.output.read_text().split())

    def wait_until(self, condition):
        """Wait until something holds while the command runs."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.output.read_text()
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.02)

    @staticmethod
    def wait_until_gone(pids):
        """Wait until processes have ended, whoever started them."""
        deadline = time.monotonic() + DEADLINE
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline, pids
            time.sleep(0.02)

    def end(self):
        """Wait for the end; returns the exit code."""
        return self.process.wait(DEADLINE)


def has_checkpoint(folder):
    """Return whether a run has written a checkpoint."""
    return any((folder / "checkpoints").glob("step-*[0-9]/manifest.json"))
