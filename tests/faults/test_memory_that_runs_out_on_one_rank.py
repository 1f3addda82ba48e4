"""Memory that runs out on one of two ranks: both take the step again, and the weights are those of the run without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ftkit.config.files import load_config
from ftkit.machine.process import ProcessContext
from ftkit.records.files import read_record
from ftkit.training.loop import train_run
from ftkit.training.reporters import Reporters
from tests.faults import one_of_two_ranks
from tests.faults.one_of_two_ranks import CASES, USUAL, settings

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]
OTHERS = [case for case in CASES if case not in USUAL]
MARKED = [*USUAL, *(pytest.param(case, marks=pytest.mark.slow) for case in OTHERS)]


@pytest.fixture(scope="module")
def ran(work, tmp_path_factory):
    """One launch of two ranks, which run the usual cases, and one for the others if they are wanted."""
    folders = {}

    def folder_of(case):
        cases = USUAL if case in USUAL else OTHERS
        if cases[0] not in folders:
            folders[cases[0]] = launched(cases, work, tmp_path_factory.mktemp("one-of-two"))
        return folders[cases[0]]

    return folder_of


def launched(cases, work, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, one_of_two_ranks.__file__, work, folder, ",".join(cases)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return folder


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory):
    """The run in which no memory runs out, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    record = train_run(load_config(settings=settings(work, folder)), ProcessContext(), Reporters())
    return record, weights(folder)


def weights(folder):
    return load_file(folder / "model" / "adapter_model.safetensors")


@pytest.mark.parametrize("case", MARKED)
def test_a_run_ends_with_the_weights_of_the_run_without_it(case, ran, whole):
    folder = ran(case)
    record, (expected, tensors) = read_record(folder / case), whole
    assert json.loads((folder / "left.json").read_text())[case] == []
    losses = [{line.step: line.loss for line in one.steps} for one in (record, expected)]
    # fp32: another cut, and the sum over two ranks, add in another order.
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for name, tensor in weights(folder / case).items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-6)
    scores = [one.last_evaluation("test") for one in (record, expected)]
    assert scores[0].loss == pytest.approx(scores[1].loss, abs=1e-6)
    assert scores[0].confusion == scores[1].confusion


@pytest.mark.parametrize("case", [case for case in USUAL if case.endswith("passes")])
def test_the_record_says_on_which_limits_the_ranks_agreed(case, ran):
    limits = [(line.step, line.after) for line in read_record(ran(case) / case).recoveries]
    cut = [(1, 4, "none"), (1, 2, "none"), (7, 1, "none"), (7, 1, "cheap")]
    assert limits == [(step, f"--micro-batch-size {size} --recompute {level}") for step, size, level in cut]
