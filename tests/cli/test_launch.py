"""What `ftkit train --num-devices` starts its processes with: it ends as they do, and says so in a sentence."""

import os
import subprocess
import sys

import pytest


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("raise SystemExit(3)", 3, ""),  # it has said why
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, "error: process 0 was ended by SIGKILL"),
    ],
)
def test_a_process_that_fails_ends_the_launch_with_its_code_and_without_a_traceback(ending, code, words, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ending)
    command = [sys.executable, "-m", "ftkit.cli.launch", "--standalone", "--nproc-per-node", "1", script]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert words in done.stderr
