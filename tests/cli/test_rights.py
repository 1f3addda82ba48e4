"""Files and folders that a user may not read or write: one sentence, whatever the command."""

import ctypes
import json
import subprocess
import sys

import pytest

_CALLS = """
import json, sys
from click.testing import CliRunner
from ftkit.cli import main
for call in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, call)
    print(json.dumps([done.exit_code, done.stderr, repr(done.exception)]))
"""
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


def without_the_rights_of_root():
    """Give up, before a program begins, what lets root read and write everything; nothing happens to other users."""
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def closed(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    file = tmp_path / "closed.csv"
    file.write_text("text,label\na film,good\n")
    for path in (folder, file):
        path.chmod(0)
    yield folder
    folder.chmod(0o700)


def test_what_may_not_be_read_is_one_sentence_that_names_it(closed):
    calls = [
        ["data", f"{closed}.csv"],
        ["data", str(closed)],
        ["data", str(closed / "films.csv")],
        ["train", "--dataset", str(closed)],
        ["predict", str(closed), "a film"],
        ["tune", "--dataset", str(closed), "--output", str(closed / "tune")],
        ["cache", "list"],
    ]
    command = [sys.executable, "-W", "ignore", "-c", _CALLS, json.dumps(calls)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, preexec_fn=without_the_rights_of_root,
        env={"FTKIT_CACHE": str(closed / "cache"), "PATH": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(calls)
    for call, (code, said, exception) in zip(calls, answers, strict=True):
        assert exception.startswith("SystemExit"), (call, exception)
        assert code > 0, call
        assert str(closed) in said.splitlines()[-1], (call, said)
        assert "Permission denied" in said.splitlines()[-1], (call, said)
