"""Each example runs as it stands, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LAST_LINES = {
    "plan_three_cards.py": "full ",
    "train_on_your_file.py": "peak measured: ",
    "read_records.py": "32 runs, median error",
}


NOTEBOOK = EXAMPLES / "classify.ipynb"


@pytest.mark.e2e
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    named, last = 'MODEL = "sentence-transformers/all-MiniLM-L6-v2"', '"output.overwrite=true",'
    assert named in code
    assert last in code
    # No process opens what was saved: `predict` does, in the last cell.
    code = code.replace(named, 'MODEL = "demo"').replace(last, f'{last} "output.reopen=false",')
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=tmp_path, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert "A lovely film" in done.stdout


def test_every_example_is_run_here():
    assert set(LAST_LINES) == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.e2e
@pytest.mark.parametrize("name", LAST_LINES)
def test_an_example_runs_in_an_empty_folder(name, tmp_path):
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, cwd=tmp_path, check=False,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(LAST_LINES[name])
