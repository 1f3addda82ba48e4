"""A node that goes and does not come back: torchrun's agent on the other one starts the job again on fewer nodes."""

import os
import signal
import socket

import pytest

from ftkit.records.files import read_record
from tests.e2e.command import flags, run
from tests.faults.launched import ROOT, TOOLS, Launched, has_checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LONG = ["--epochs", 40, "--no-plan", "--set", "training.checkpoint_every=40", "--set", "training.eval_every=1000"]


def test_a_job_that_may_run_on_fewer_nodes_goes_on_without_the_one_that_is_gone(work, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert run(*flags(work, whole, *LONG)).exit_code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = [TOOLS / "torchrun", "--nnodes", "1:2", "--nproc-per-node", 1, "--max-restarts", 3, "--rdzv-id", "job"]
    node += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf"]
    command = [ROOT / "launch" / "train.py", *flags(work, folder, *LONG, "--resume", "auto")]
    with (
        Launched([*node, "is_host=true", *command], tmp_path / "stays.txt") as stays,
        Launched([*node, "is_host=false", *command], tmp_path / "goes.txt") as goes,
    ):
        stays.wait_until(lambda: has_checkpoint(folder))
        assert (folder / "ranks" / "rank-1").is_file(), "both nodes take part"
        for pid in (goes.process.pid, *goes.ranks()):
            os.kill(pid, signal.SIGKILL)
        assert stays.end() == 0, stays.said()
    record = read_record(folder)
    assert record.run.world_size == 1
    # fp32; two ranks sum in another order than one, and 400 updates by Adam carry that on.
    expected = [line.loss for line in read_record(whole).steps]
    assert [line.loss for line in record.steps] == pytest.approx(expected, rel=1e-3, abs=1e-4)
