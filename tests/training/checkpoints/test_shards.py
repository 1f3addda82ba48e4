"""Checkpoints of which each rank writes its own part go on, on any number of ranks, as if never stopped."""

import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ftkit.config.files import load_config
from ftkit.engine.protocol import Part
from ftkit.errors import CheckpointError, DivergedError
from ftkit.machine.process import ProcessContext
from ftkit.records.files import read_record
from ftkit.training.checkpoints.by_ranks import Ranks
from ftkit.training.checkpoints.checkpoint import (
    MANIFEST,
    TrainingState,
    list_checkpoints,
    load_best,
    load_checkpoint,
    vouch,
)
from ftkit.training.checkpoints.shards import read_shards, write_own
from ftkit.training.checks.finite import check_tensors
from ftkit.training.loop import train_run
from ftkit.training.reporters import Reporters
from tests.e2e.conftest import work
from tests.training.checkpoints import on_two_ranks
from tests.training.checkpoints.on_two_ranks import SHARDED, settings

__all__ = ["work"]
ROOT = Path(__file__).resolve().parents[3]


def run(work, folder, steps, *more, resume=False):
    config = load_config(settings=settings(work, folder, steps, *more))
    return train_run(config, ProcessContext(), Reporters(), resume=resume)


@pytest.fixture(scope="module")
def launched(work, tmp_path_factory):
    """The runs of two ranks, one of which goes on from the shard of one, and a run of one rank that never stops."""
    folder = tmp_path_factory.mktemp("shards")
    run(work, folder / "from one", 3, *SHARDED)
    run(work, folder / "whole", 6)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, on_two_ranks.__file__, work, folder], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["from two", "to ZeRO-2", "from one"])
def test_a_run_goes_on_from_shards_as_if_it_had_never_stopped(name, launched, work):
    folder = launched / name
    if name == "from two":
        assert len(list((folder / "checkpoints" / "step-00000003").glob("shard-*"))) == 2
        run(work, folder, 6, resume=True)
    record, expected = read_record(folder), read_record(launched / "whole")
    losses = [{line.step: line.loss for line in one.steps} for one in (record, expected)]
    assert sorted(losses[0]) == [1, 2, 3, 4, 5, 6]
    # fp32: the gradients are summed over two ranks in another order.
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    weights = [load_file(one / "model" / "model.safetensors") for one in (folder, launched / "whole")]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][key], rtol=1e-5, atol=1e-5)


@pytest.mark.distributed
def test_shards_are_kept_and_removed_as_other_checkpoints_are(launched):
    folder = launched / "from one" / "checkpoints"
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000003", "step-00000006"]
    state, weights, moments = load_checkpoint(folder / "step-00000006")
    assert (state.format, state.step, len(moments)) == (2, 6, 3 * len(weights))
    assert set(load_best(folder, state.best_steps[0])) == set(weights)


def part(tensor, start, end):
    return Part(tuple(tensor.shape), start, end - start, lambda: tensor.flatten()[start:end])


TENSOR = torch.arange(10.0).view(2, 5)


def written(folder, cuts=(0, 4, 10)):
    """Write a tensor in two shards, and a number that the first one has."""
    folder.mkdir()
    for rank, (start, end) in enumerate(pairwise(cuts)):
        groups = {"weight": {"a": part(TENSOR, start, end)}, "moment": {}}
        groups["moment"] = {"a/step": part(torch.tensor(3.0), 0, 1)} if rank == 0 else {}
        write_own(folder, rank, 2, groups, lambda *_: None)
    return folder


def test_a_tensor_is_put_together_from_its_parts(tmp_path):
    folder = written(tmp_path / "step")
    assert read_shards(folder, "weight", "")["a"].equal(TENSOR)
    moments = read_shards(folder, "moment", "")
    assert moments["a/step"].equal(torch.tensor(3.0))
    assert ("loss_scale/" in moments, "a/step" in moments) == (False, True)


@pytest.mark.parametrize("cuts", [(0, 4, 9), (0, 4, 11)], ids=["too few numbers", "too many"])
def test_parts_that_do_not_make_a_whole_are_refused(cuts, tmp_path):
    wide = torch.arange(11.0)
    folder = tmp_path / "step"
    folder.mkdir()
    for rank, (start, end) in enumerate(pairwise(cuts)):
        one = replace(part(wide, start, end), shape=(2, 5))
        write_own(folder, rank, 2, {"weight": {"a": one}}, lambda *_: None)
    with pytest.raises(CheckpointError, match=f"weight/a has {cuts[-1]} of 10 numbers"):
        read_shards(folder, "weight", "take another")


def test_a_shard_that_is_missing_is_refused(tmp_path):
    folder = written(tmp_path / "step")
    vouch(folder)
    assert "shard-00001-of-00002.safetensors" in json.loads((folder / MANIFEST).read_text())
    (folder / "shard-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard-00001-of-00002\.safetensors is missing"):
        load_checkpoint(folder)


def test_a_part_that_is_not_finite_is_not_kept_and_nothing_is_left_of_the_attempt(tmp_path):
    ranks = Ranks(ProcessContext(), lambda write: write(), lambda name, one: check_tensors({name: one}, "part", 2))
    state = TrainingState(step=2, num_steps=4, fingerprint="", config={})
    with pytest.raises(DivergedError, match="the part weight/a is not finite after step 2"):
        ranks.save(tmp_path, state, {"a": part(torch.full((3,), torch.nan), 0, 3)}, {}, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_read_when_it_is_written_and_gone_before_the_next(tmp_path):
    """So what a save holds is the largest part, however many there are."""
    alive, most = [], []

    def read(number):
        tensor = torch.full((1000,), float(number))
        alive.append(weakref.ref(tensor))
        most.append(sum(one() is not None for one in alive))
        return tensor

    parts = {str(number): Part((1000,), 0, 1000, partial(read, number)) for number in range(8)}
    tmp_path.joinpath("step").mkdir()
    write_own(tmp_path / "step", 0, 1, {"weight": parts}, lambda *_: None)
    assert max(most) <= 2
