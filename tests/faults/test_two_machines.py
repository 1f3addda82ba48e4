"""One run over two machines, started by the files of launch/ as their lines say, gives the losses of one process."""

import json
import os
import subprocess

import pytest

from ftkit.records.files import read_record
from tests.e2e.command import flags, run
from tests.faults.launched import ROOT, TOOLS
from tests.faults.two_hosts import HOSTS, TwoHosts, may_make_hosts

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(not may_make_hosts(), reason="needs a user who may make network namespaces"),
    pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="launch/slurm.sbatch starts what scripts/setup installs"),
]

MORE = ["--epochs", 1, "--no-plan", "--zero-stage", 2]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with TwoHosts(tmp_path_factory.mktemp("hosts")) as two:
        yield two


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """The losses of the run in one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(*flags(work, folder, *MORE, "--zero-stage", 0)).exit_code == 0
    return losses(folder)


def losses(folder):
    return [line.loss for line in read_record(folder).steps]


def start(hosts, command, **variables):
    """Run a command on the first host; what reaches the other one is on its path."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "eth0"}
    environment |= {"PATH": os.pathsep.join([str(hosts.tools), str(TOOLS), os.environ["PATH"]]), **variables}
    first = ["ip", "netns", "exec", "ftkit-node-1", "unshare", "--uts", "sh", "-c", 'hostname node-1; exec "$@"', "sh"]
    done = subprocess.run(
        [*first, *map(str, command)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def check(folder, whole):
    record = read_record(folder)
    assert (record.run.world_size, record.run.engine) == (len(HOSTS), "deepspeed")
    # fp32; two ranks sum in another order than one.
    assert losses(folder) == pytest.approx(whole, rel=1e-5)
    assert sorted(path.name for path in (folder / "ranks").iterdir()) == ["rank-0", "rank-1"]


def test_the_batch_script_of_slurm_starts_torchrun_on_each_node(hosts, work, whole, tmp_path):
    slurm = {"SUBMIT_DIR": ROOT, "JOB_NODELIST": "node-[1-2]", "JOB_NUM_NODES": 2, "JOB_ID": 7, "CPUS_PER_TASK": 1}
    slurm |= {"GPUS_PER_NODE": 1}
    variables = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    start(hosts, ["bash", ROOT / "launch" / "slurm.sbatch", *flags(work, tmp_path / "run", *MORE)], **variables)
    check(tmp_path / "run", whole)


def test_the_launcher_of_deepspeed_reads_a_file_of_hosts(hosts, work, whole, tmp_path):
    names = (ROOT / "launch" / "hostfile.example").read_text().replace("slots=4", "slots=1")
    (tmp_path / "hostfile").write_text(names)
    command = [
        TOOLS / "deepspeed",
        "--hostfile",
        tmp_path / "hostfile",
        "--master_port",
        29511,
        ROOT / "launch" / "train.py",
    ]
    start(hosts, [*command, *flags(work, tmp_path / "run", *MORE)])
    check(tmp_path / "run", whole)
    assert json.loads((tmp_path / "run" / "ranks" / "rank-1").read_text()) >= 1
