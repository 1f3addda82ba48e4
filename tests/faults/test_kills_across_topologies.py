"""A run of which one rank is killed at a random moment goes on as another number of ranks, stage or engine."""

import random
import signal
from functools import partial
from typing import NamedTuple

import pytest
import torch

from ftkit.errors import PeerLostError
from ftkit.records.files import CHECKPOINTS
from ftkit.training.checkpoints.checkpoint import list_checkpoints
from tests.faults.killed import MOMENTS, OF_EVERY_RANK, ended, ranks_ended, train, train_and_die
from tests.faults.test_kills import result, settings

pytestmark = pytest.mark.distributed


class Topology(NamedTuple):
    """How a run is spread."""

    num_ranks: int
    engine: str
    zero_stage: int


PLAIN, TWO, ZERO_2, ZERO_3 = (
    Topology(1, "plain", 0), Topology(2, "plain", 0), Topology(2, "deepspeed", 2), Topology(2, "deepspeed", 3)
)  # fmt: skip
CHANGES = {
    "1 rank to 2": (PLAIN, TWO),
    "2 ranks to 1": (TWO, PLAIN),
    "stage 2 to 3": (ZERO_2, ZERO_3),
    "plain to DeepSpeed": (PLAIN, ZERO_2._replace(num_ranks=1)),
}
SEEDS = range(12)
ORDINARY = (0, 1)
"""Of the plain engine, whose processes need no second to start DeepSpeed."""


def spread(work, folder, topology):
    engine = [f"engine.name={topology.engine}", f"engine.zero_stage={topology.zero_stage}"]
    return [*settings(work, folder, "plain"), *engine]


@pytest.fixture(scope="module")
def whole(work, tmp_path_factory, processes):
    """The run in one process that nobody kills."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert ended(processes, train, spread(work, folder, PLAIN)) == 0
    return result(folder)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed in ORDINARY else pytest.mark.slow) for seed in SEEDS]
)
def test_a_run_that_loses_one_rank_goes_on_in_another_topology(seed, work, tmp_path, processes, whole, record_property):
    draw, name = random.Random(seed), list(CHANGES)[seed % len(CHANGES)]
    before, after = CHANGES[name]
    killed = draw.randrange(before.num_ranks)
    moment = draw.choice(OF_EVERY_RANK if killed else MOMENTS)
    call = draw.randint(4, 6)  # a checkpoint is written after the second step
    start = spread(work, tmp_path, before)
    ranks = [partial(train, start) for _ in range(before.num_ranks)]
    ranks[killed] = partial(train_and_die, start, moment, call, False)
    codes = ranks_ended(processes, ranks)
    record_property(name, f"rank {killed}, {moment} {call}")
    assert codes.pop(killed) == -signal.SIGKILL
    assert codes == [PeerLostError.exit_code] * (before.num_ranks - 1)
    resume = bool(list_checkpoints(tmp_path / CHECKPOINTS))
    again = spread(work, tmp_path if resume else tmp_path / "anew", after)
    assert ranks_ended(processes, [partial(train, again, resume)] * after.num_ranks) == [0] * after.num_ranks
    losses, scores, weights = result(tmp_path if resume else tmp_path / "anew")
    # fp32: two ranks add in another order than one.
    assert losses == pytest.approx(whole[0], abs=1e-6)
    assert scores == pytest.approx(whole[1], abs=1e-6)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, whole[2][name], rtol=0, atol=1e-6)
