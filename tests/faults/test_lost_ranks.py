"""A rank that is killed or stops answering: the others name it and its last step, and a restarted job goes on."""

import os
import re
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from ftkit.records.files import read_record
from tests.e2e.command import flags, run
from tests.faults.launched import TOOLS, Launched, has_checkpoint

pytestmark = pytest.mark.distributed

LONG = ["--epochs", 20, "--no-plan", "--set", "training.checkpoint_every=20", "--set", "training.eval_every=1000"]
"""Long enough that a rank can be stopped in the middle of it."""


def test_a_job_that_loses_a_rank_is_restarted_and_ends_with_the_weights_of_one_that_did_not(work, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert run(*flags(work, whole, *LONG)).exit_code == 0
    command = [sys.executable, "-m", "ftkit", "train", "--num-devices", 2, "--restarts", 1, "--zero-stage", 2]
    with Launched([*command, *flags(work, folder, *LONG)], tmp_path / "said.txt") as job:
        job.wait_until(lambda: has_checkpoint(folder))
        os.kill(job.rank(1), signal.SIGKILL)
        assert job.end() == 0, job.said()
    assert re.search(r"rank 1 was last heard of .* ago, at step \d+", job.said())
    assert read_record(folder).result.num_steps == read_record(whole).result.num_steps
    # fp32; two ranks sum in another order than one, and 160 updates by Adam carry that on.
    expected = load_file(whole / "model" / "adapter_model.safetensors")
    for name, tensor in load_file(folder / "model" / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_rank_that_stops_answering_is_named_after_the_stated_time(work, tmp_path):
    folder = tmp_path / "run"
    command = [TOOLS / "torchrun", "--standalone", "--nproc-per-node", 2, "-m", "ftkit", "train"]
    stated = ["--set", "engine.peer_timeout=3"]
    with Launched([*command, *flags(work, folder, *LONG, *stated)], tmp_path / "said.txt") as job:
        job.wait_until(lambda: has_checkpoint(folder))
        os.kill(job.rank(1), signal.SIGSTOP)
        job.wait_until(lambda: "error:" in job.said())
    found = re.search(
        r"another rank of this job was lost or stopped answering: rank 1 was last heard of .* ago, at step (\d+)",
        job.said(),
    )
    assert found, job.said()
    assert int(found[1]) >= 1
