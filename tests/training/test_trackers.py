"""Trackers that are not installed, asked for in a process of its own: accelerate keeps state of its first use."""

import subprocess
import sys

import pytest
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

MISSING = next(
    (name for name in ("clearml", "swanlab", "aim") if LoggerType(name) not in get_available_trackers()), None
)


@pytest.mark.skipif(MISSING is None, reason="every tracker is installed here")
def test_a_tracker_that_is_not_installed_is_refused_in_one_sentence_with_the_pip_command(tmp_path):
    command = [sys.executable, "-m", "ftkit", "train", "--tracker", str(MISSING), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 6
    assert done.stderr.splitlines()[-1] == (
        f"error: --tracker {MISSING} needs its package, which is not installed: pip install {MISSING}"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
