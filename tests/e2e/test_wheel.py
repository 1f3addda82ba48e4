"""ftkit as pip installs it: the wheel in an environment of its own, far from the checkout, under each launcher."""

import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ftkit.records.files import read_record
from tests.e2e.command import flags

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter that finds ftkit in a wheel alone, and all other libraries where this one does.

    The folder of those is one line of a .pth file, whose own .pth files Python then does not read: the checkout, which
    stands in one of them, is out of sight, and nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("ftkit-*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = folder.glob("venv/lib/*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run_elsewhere(command, place):
    """Run a command that knows nothing of the checkout; returns what it printed."""
    hidden = {"PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, cwd=place, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launcher(name, python):
    """Return the start of a command line, as the console scripts of the launchers run it."""
    match name:
        case "python":
            return [python, "-m", "ftkit", "train"]
        case "torchrun":
            start = [python, "-m", "torch.distributed.run", "--nproc-per-node", 1, "--master-port", free_port()]
            return [*start, "-m", "ftkit", "train"]
        case "deepspeed":
            start = [python, TOOLS / "deepspeed", "--quiet", "--num_accelerators", 1, "--master_port", free_port()]
            return [*start, "--module", "ftkit", "train"]


def test_the_wheel_holds_ftkit_and_all_that_it_reads(python, tmp_path):
    code = (
        "import ftkit; from ftkit.config import files; from ftkit.engine import ds_config;"
        "print(ftkit.__file__, len(files.preset_names()), len(list(ds_config.templates_folder().iterdir())))"
    )
    place, presets, templates = run_elsewhere([python, "-c", code], tmp_path).split()
    assert Path(place).is_relative_to(python.parents[1])
    assert int(presets) == len(list((ROOT / "ftkit" / "config" / "presets").glob("*.yaml")))
    assert int(templates) == len(list((ROOT / "ds_configs").glob("*.json")))


@pytest.mark.parametrize("name", ["python", "torchrun", "deepspeed"])
def test_an_installed_wheel_trains_under_each_launcher(name, python, work, tmp_path):
    folder = tmp_path / "run"
    run_elsewhere([*launcher(name, python), *flags(work, folder, "--max-steps", 1)], tmp_path)
    record = read_record(folder)
    assert record.result.status == "completed"
    assert (folder / "model").is_dir()
