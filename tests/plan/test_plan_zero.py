"""ZeRO's arithmetic against DeepSpeed itself, on two real ranks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftkit.plan.place import Place
from ftkit.plan.timeline import find_peak
from ftkit.plan.trace import trace
from ftkit.plan.zero import share_out
from tests.plan import models
from tests.plan.zero_cases import CASES, case_config

RANKS = 2
MOMENT_BYTES = 8


def run_ranks() -> dict[tuple, dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.plan.zero_worker"],
            cwd=root,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), outputs[0][-3000:]
    lines = [json.loads(line) for line in outputs[0].splitlines() if line.startswith('{"case"')]
    return {tuple(line["case"]): line for line in lines}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(1200)
def test_live_bytes_of_real_ranks_are_within_two_percent_of_the_plan_after_loading_and_at_the_peak():
    measured = run_ranks()

    for case in CASES:
        config, architecture = case_config(*case), models.architecture("llama", width=128)
        tape = trace(config, architecture, torch.bfloat16, models.shape("llama"), device_type="cpu")
        trained = sum(birth.size // 2 for birth in tape.births if birth.role == "trainable")
        sharing = share_out(tape, config, "bf16", Place("cpu", "cpu", None, 2**40, RANKS), trained)
        # On a CPU, what is offloaded is counted with the rest; the moments come with the first step.
        moments = MOMENT_BYTES * trained // RANKS if sharing.host_bytes else 0
        load = sharing.tape.at_marks()[0][1] + sharing.host_bytes - moments
        peak = find_peak(sharing.tape, int).active_bytes + sharing.host_bytes

        assert load == pytest.approx(measured[case]["load"], rel=0.02), case
        assert peak == pytest.approx(measured[case]["peak"], rel=0.02), case
